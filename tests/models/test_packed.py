"""Packed rows: the loss is that of every text alone, whatever the model and whoever trains it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.models import attention
from springroll.models.decoder import decoder
from springroll.models.decoder_config import CONFIGS
from springroll.models.packed import places
from springroll.models.rope import DynamicScaling
from springroll.models.rwkv7 import RWKV7
from springroll.models.rwkv7.config import RWKV7_CONFIGS
from springroll.train.build import learner_for
from springroll.train.config import TrainConfig
from springroll.train.streamed import stream_learner
from tests.models.packed import packed, texts_of

TINY = dataclasses.replace(CONFIGS["llama-tiny"], vocab=32)
ROWS = [[0, 3, 2], [4], [1, 5]]
TEXTS = texts_of([9, 14, 5, 4, 22, 3], 32)
odd = lambda i: i % 2 == 1


def alone(model, params, texts, learnt):
    """The mean over the learnt tokens of all texts, each read by itself."""
    total, count, nats_of = 0.0, 0, jax.jit(model.token_nats)
    for text in texts:
        tokens, targets = text[None, :-1], text[None, 1:].copy()
        targets[0, [not learnt(i) for i in range(1, len(text))]] = -1
        nats = nats_of(params, jnp.asarray(tokens), jnp.asarray(targets))[0]
        total, count = total + float(nats.sum()), count + (targets >= 0).sum()
    return total / count


@pytest.mark.parametrize(
    "changes",
    [
        {"window": 4, "local_theta": 100.0, "sinks": True},
        pytest.param(
            {"rope_scaling": DynamicScaling(factor=4.0, original_length=8)}, marks=pytest.mark.slow
        ),
        pytest.param({"experts": 4, "top_k": 2}, marks=pytest.mark.slow),
    ],
)
def test_the_loss_is_that_of_every_text_alone(changes):
    model = decoder(dataclasses.replace(TINY, **changes))
    params = model.init(jax.random.key(0))
    batch = packed(TEXTS, ROWS, 24, odd)
    found = jax.jit(model.loss)(params, batch)[1]["nats"]
    np.testing.assert_allclose(found, alone(model, params, TEXTS, odd), rtol=1e-5)


@pytest.mark.slow
def test_attention_in_blocks_keeps_texts_apart(monkeypatch):
    monkeypatch.setattr(attention, "FORMED", {"cpu": 1, "device": 1})
    monkeypatch.setattr(attention, "BLOCK", 16)
    model = decoder(dataclasses.replace(TINY, window=4))
    params = model.init(jax.random.key(0))
    found = jax.jit(model.loss)(params, packed(TEXTS, ROWS, 40, odd))[0]
    np.testing.assert_allclose(found, alone(model, params, TEXTS, odd), rtol=1e-5)


def test_equal_parts_of_a_step_weigh_as_many_answers_as_they_hold():
    model = decoder(TINY)
    params = model.init(jax.random.key(0))
    whole = packed(TEXTS, [[4], [5]], 24, lambda i: i > 1)  # 20 answer tokens, and 1
    loss = jax.jit(model.loss)
    part = lambda i: jax.tree.map(lambda x: x[i : i + 1], whole)
    mean = (loss(params, part(0))[0] + loss(params, part(1))[0]) / 2
    np.testing.assert_allclose(mean, loss(params, whole)[0], rtol=1e-6)


@pytest.mark.slow
def test_a_recurrent_model_reads_one_text_of_a_row():
    model = RWKV7(dataclasses.replace(RWKV7_CONFIGS["rwkv7-tiny"], vocab=32))
    params = model.init(jax.random.key(0))
    batch = packed(TEXTS, [[n] for n in range(6)], 24, odd)
    found = jax.jit(model.loss)(params, batch)[0]
    np.testing.assert_allclose(found, alone(model, params, TEXTS, odd), rtol=1e-5)


def test_places_are_counted_within_a_text():
    place, length = places(jnp.array([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1]]))
    assert place.tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5]]
    assert length.tolist() == [[2, 2, 3, 3, 3, 1], [6] * 6]


@pytest.mark.slow  # compiles every engine
@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("llama-tiny", {"layerwise": True}),
        ("llama-tiny", {"engine": "stream", "update": "device"}),
        ("llama-tiny", {"engine": "stream", "update": "host", "accumulate": 2}),
        ("moe-1m", {"engine": "stream", "update": "device", "experts_per_bundle": 4}),
    ],
)
def test_whoever_trains_takes_the_same_step(model, options):
    """Weights after two steps are those of `jax.grad` of the whole loss and AdamW."""
    shape = dataclasses.replace(CONFIGS[model], vocab=32)
    batch = packed(texts_of([9, 14, 5, 4, 22, 3, 20, 7], 32), [[0, 3, 2], [4], [1, 5], [6]], 24)
    steps = [batch, jax.tree.map(lambda x: x[::-1].copy(), batch)]
    base = TrainConfig(batch=4, sequence=24, lr=1e-2, clip=None, schedule="constant", warmup=0.0)

    def after(config):
        config = dataclasses.replace(config, batch=4 // config.accumulate)
        net = decoder(shape)
        if config.engine == "stream":
            learner = stream_learner(config, net, jax.devices()[:1])[0]
        else:
            learner = learner_for(config, net, net.init)
        state, losses = learner.init(jax.random.key(0)), []
        for rows in steps:
            state, metrics = learner.step(state, rows)
            losses.append(float(metrics["loss"]))
        return jax.tree.map(np.asarray, learner.params(state)), losses

    weights, losses = after(base)
    found, same = after(dataclasses.replace(base, **options))
    np.testing.assert_allclose(same, losses, rtol=1e-5)
    # Adam makes a whole step of a gradient that is nothing but rounding, for a few of a million.
    apart = [np.abs(a - b) for a, b in zip(*map(jax.tree.leaves, (found, weights)), strict=True)]
    assert max(x.max() for x in apart) < 1e-3 and max(x.mean() for x in apart) < 1e-5


@pytest.mark.slow
def test_low_rank_gradients_take_packed_rows():
    net = decoder(TINY)
    batch = packed(TEXTS, ROWS, 24, odd)
    options = {"optimizer": "lowgrad", "rank": 4, "lr": 1e-2, "batch": 3, "sequence": 24}
    losses = []
    for engine in ("resident", "stream"):
        config = TrainConfig(engine=engine, **options)
        made = stream_learner(config, net, jax.devices()[:1])[0] if engine == "stream" else None
        learner = made or learner_for(config, net, net.init)
        state = learner.init(jax.random.key(0))
        for _ in range(8):
            state, metrics = learner.step(state, batch)
            losses.append(float(metrics["loss"]))
    assert losses[7] < losses[0]
    np.testing.assert_allclose(losses[8:], losses[:8], rtol=1e-4)
