"""`lowgrad` on a stream is `lowgrad`: the same bits, and nothing returns between two refreshes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from streaming import EPS, LR, arrays, distance, model, shapes, started, tokens

from springroll.errors import InputError
from springroll.lowgrad.lowgrad import lowgrad
from springroll.models.decoder import leaves
from springroll.models.stages import stages
from springroll.stream.filling import stacked_leaves
from springroll.stream.low_rank import StreamedLowRank

STEPS = 5


def matrix(path):
    return path.startswith("layers/") and path.endswith("_proj")


def trainer(decoder, select=matrix, **options):
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(LR, eps=EPS))
    settings = {"rank": 4, "period": 3, "turns": 1, "refresh": "random", "select": select}
    return lowgrad(
        decoder.loss, shapes(decoder), tx, tokens(), has_aux=True, **(settings | options)
    )


def filled(decoder, made, **options):
    streamed = StreamedLowRank(stages(decoder), made, shapes(decoder), **options)
    return streamed, streamed.fill(stacked_leaves(leaves(decoder.config, jax.random.key(0))))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("llama-tiny", {"depth": 2}, marks=pytest.mark.slow),
        ("moe-tiny", {"on_device": (1,), "kept_inputs": 1}),
    ],
)
def test_it_is_the_resident_trainer(name, options):
    decoder = model(name)
    whole, streamed = trainer(decoder), trainer(decoder)
    state = whole.init(started(decoder))
    streamed, there = filled(decoder, streamed, **options)
    for i in range(STEPS):
        state, expected = whole.update(state, tokens(i))
        there, metrics = streamed.step(there, tokens(i))
        np.testing.assert_allclose(float(metrics["loss"]), float(expected["loss"]), rtol=1e-6)
    moved = distance(state.params, started(decoder))
    assert distance(state.params, there.params) < 1e-5 * moved
    for a, b in zip(arrays(state), arrays(there), strict=True):
        assert np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(a)
    assert int(there.schedule.step) == STEPS


def test_between_two_refreshes_only_bases_cross_the_link():
    decoder = model()
    streamed, state = filled(decoder, trainer(decoder, period=100), depth=2)
    state, _ = streamed.step(state, tokens(0))  # refreshes all, as at the start of every run
    before = streamed.link.traffic
    state, _ = streamed.step(state, tokens(1))
    now = streamed.link.traffic
    layers = started(decoder)["layers"]
    bases = sum(x.nbytes for x in arrays({**layers["mlp"], **layers["self_attn"]}))
    assert now.sent - before.sent == (2 * 3 - 1) * bases // 3
    assert now.fetched == before.fetched


def test_what_it_cannot_do_is_said():
    decoder = model()
    with pytest.raises(InputError, match="refresh 'power' computes a second gradient"):
        filled(decoder, trainer(decoder, refresh="power"))
    with pytest.raises(InputError, match="lm_head is in a subspace but in no layer"):
        filled(decoder, trainer(decoder, lambda path: path.endswith(("_proj", "lm_head"))))


def test_micro_batches_and_scores():
    decoder = model()
    streamed, state = filled(decoder, trainer(decoder), parts=2)
    found = float(streamed.score(state, tokens(0), rows=2)["nats"])
    state, metrics = streamed.step(state, tokens(0))
    np.testing.assert_allclose(found, float(metrics["nats"]), rtol=1e-6)
    assert jnp.isfinite(metrics["grad_norm"])
