"""A streamed step is the step of the whole model: gradients, updates, clipping, skipping, bytes."""

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from springroll.errors import InputError
from springroll.stream.clipping import Clip
from springroll.stream.device_update import DeviceUpdate
from springroll.stream.fill_store import stacked_leaves
from springroll.stream.host_adamw import AdamW
from springroll.stream.host_update import check_steps
from springroll.stream.streamed import Streamed
from springroll.stream.visit_order import checkpointed, layer_major
from springroll.trees import named_leaves
from tests.stream.streaming import (
    EPS,
    LR,
    adam,
    arrays,
    distance,
    gradient,
    model,
    started,
    streamed,
    tokens,
    update,
    whole,
)

STEPS = 3


def run(trainer, state, steps=STEPS):
    seen = []
    for i in range(steps):
        state, metrics = trainer.step(state, tokens(i))
        seen.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    return state, seen


def close(seen, expected, tolerance=1e-5):
    np.testing.assert_allclose(seen, expected, rtol=tolerance)


@functools.cache
def reference(clip):
    """(params, loss and norm of each step) of ordinary training, in which parts have no part."""
    optimizer = adam() if clip is None else optax.chain(optax.clip_by_global_norm(clip), adam())
    return whole(model(), STEPS, optimizer)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        pytest.param("llama-tiny", 1, marks=pytest.mark.slow),
        pytest.param("llama-tiny", 2, marks=pytest.mark.slow),
        pytest.param("moe-tiny", 1, marks=pytest.mark.slow),
        ("moe-tiny", 2),
    ],
)
def test_gradients_are_those_of_the_whole_model(name, parts):
    # With plain descent at a rate of 1 the change of the weights is the gradient.
    trainer, state = streamed(model(name), optimizer=optax.sgd(1.0), parts=parts)
    state, _ = trainer.step(state, tokens())
    begun = started(model(name))
    of_parts = [arrays(gradient(model(name))(begun, tokens()[i::parts])[1]) for i in range(parts)]
    grads = [np.mean(of_leaf, axis=0) for of_leaf in zip(*of_parts, strict=True)]
    found = [a - b for a, b in zip(arrays(begun), arrays(state.params), strict=True)]
    for got, expected in zip(found, grads, strict=True):
        largest = max(float(np.max(np.abs(expected))), 1e-3)
        # What is subtracted is rounded to the weights' own precision, 6e-8 of about 1.
        np.testing.assert_allclose(got, expected, atol=1e-5 * largest + 2e-7)


@pytest.mark.parametrize(
    ("where", "options"),
    [
        pytest.param("device", {}, marks=pytest.mark.slow),
        ("device", {"parts": 2, "depth": 2, "kept_inputs": 1}),
        pytest.param("device", {"on_device": (0, 2), "clip": Clip(0.5)}, marks=pytest.mark.slow),
        ("device", {"order": "checkpointed", "depth": 1}),
        pytest.param("host", {"kept_inputs": 0}, marks=pytest.mark.slow),
        ("host", {"parts": 2, "clip": Clip(0.5)}),
    ],
)
def test_n_steps_end_where_the_whole_model_does(where, options):
    params, expected = reference(options.get("clip", Clip()).limit)
    trainer, state = streamed(model(), where, **options)
    state, seen = run(trainer, state)
    close(seen, expected)
    moved = distance(params, started(model()))
    assert distance(state.params, params) < 1e-5 * moved
    assert int(state.steps) == STEPS


@pytest.mark.parametrize("where", [pytest.param("device", marks=pytest.mark.slow), "host"])
def test_layers_are_adjusted_with_the_figures_of_their_experts(where):
    from springroll.models.decoder import leaves
    from springroll.models.moe import balance
    from tests.stream.streaming import shapes

    moe = model("moe-tiny")
    path = lambda layer: layer["mlp"]["e_score_correction_bias"]

    def adjust(layer, stats):
        bias = balance(path(layer), stats["load"])
        return layer | {"mlp": layer["mlp"] | {"e_score_correction_bias": bias}}

    load = jax.jit(moe.loss)(started(moe), tokens(0))[1]["load"]
    trainer = Streamed(moe, shapes(moe), update(where, adjust=adjust))
    state = trainer.fill(stacked_leaves(leaves(moe.config, jax.random.key(0))))
    state, metrics = trainer.step(state, tokens(0))
    np.testing.assert_array_equal(np.asarray(metrics["load"]), np.asarray(load))
    biases = np.asarray(path(state.params["layers"]))
    expected = jax.vmap(balance)(path(started(moe)["layers"]), load)
    np.testing.assert_allclose(biases, np.asarray(expected), atol=1e-7)


@pytest.mark.parametrize("where", ["device", pytest.param("host", marks=pytest.mark.slow)])
def test_clipping_by_layer_and_by_the_step_before(where):
    plain = optax.sgd(1.0)
    limit = 0.1
    for by in ("layer", "previous"):
        if where == "host":
            trainer, state = streamed(model(), where, clip=Clip(limit, by))
        else:
            trainer, state = streamed(model(), where, plain, clip=Clip(limit, by))
        before = arrays(state.params["layers"])
        state, metrics = trainer.step(state, tokens(0))
        first = [a - b for a, b in zip(arrays(state.params["layers"]), before, strict=True)]
        norms = np.sqrt(sum(np.square(x).reshape(3, -1).sum(1) for x in first))
        if where == "device" and by == "layer":
            np.testing.assert_allclose(norms, limit, rtol=1e-3)
        if where == "device" and by == "previous":  # no step before: not clipped
            assert norms.max() > limit
        before, norm = arrays(state.params), float(metrics["grad_norm"])
        state, metrics = trainer.step(state, tokens(1))
        if where == "device" and by == "previous":
            second = [a - b for a, b in zip(arrays(state.params), before, strict=True)]
            moved = np.sqrt(sum(float(np.square(x).sum()) for x in second))
            np.testing.assert_allclose(moved, float(metrics["grad_norm"]) * limit / norm, rtol=1e-3)
        assert np.isfinite(float(metrics["loss"]))


@pytest.mark.parametrize("where", ["device", "host"])
@pytest.mark.parametrize("clip", [Clip(), Clip(1.0)])
def test_a_step_without_a_finite_loss_changes_nothing(where, clip):
    trainer, state = streamed(model(), where, clip=clip)
    good = trainer.store.leaf(3, "weights", 0).copy()
    trainer.store.write(3, "weights", 0, np.full_like(good, np.nan))
    before = arrays(state)
    state, metrics = trainer.step(state, tokens())
    assert np.isnan(float(metrics["loss"])) and int(state.steps) == 1
    for a, b in zip(arrays(state)[:-1], before[:-1], strict=True):
        np.testing.assert_array_equal(a, b)
    trainer.store.write(3, "weights", 0, good)
    state, metrics = trainer.step(state, tokens())
    assert np.isfinite(float(metrics["loss"]))


@pytest.mark.parametrize(
    ("depth", "parts"),
    [
        (1, 1),
        (3, 2),
        *(pytest.param(*x, marks=pytest.mark.slow) for x in ((1, 2), (2, 1), (2, 2), (3, 1))),
    ],
)
def test_bundles_and_bytes_are_those_of_the_formula(parts, depth):
    layers = 6
    trainer, state = streamed(model(layers=layers), parts=parts, depth=depth)
    weights = 4 * sum(x.size // layers for x in arrays(started(model(layers=layers))["layers"]))
    rest = 4 * model(layers=layers).config.parameters - layers * weights
    embedding = 4 * started(model(layers=layers))["embed_tokens"].size
    for _ in range(2):
        before = trainer.link.traffic
        state, _ = trainer.step(state, tokens())
        trainer.store.settle()
        now = trainer.link.traffic
        # Weights forward; weights, two moments and two counters backward: of the last layer once.
        state_of = 2 * weights + 4
        # Of the rest the embedding, the head, the embedding again, and all with its state and the
        # gradient that waited on the host.
        assert now.sends - before.sends == 2 * layers - 1 + 5
        assert now.sent - before.sent == (2 * layers - 1) * weights + layers * state_of + (
            rest + embedding + (3 * rest + 4) + rest
        )
        assert now.fetches - before.fetches == layers + 3
        assert now.fetched - before.fetched == layers * (weights + state_of) + rest + 3 * rest + 4
    assert trainer.engine.conveyor.ledger.peak == min(depth, layers)


def test_updates_on_the_host_send_weights_twice_and_fetch_gradients_once():
    layers = 6
    trainer, state = streamed(model(layers=layers), "host", depth=2, parts=2)
    numbers = model(layers=layers).config.parameters
    layer = sum(x.size // layers for x in arrays(started(model(layers=layers))["layers"]))
    state, _ = trainer.step(state, tokens())
    trainer.store.settle()
    found = trainer.link.traffic
    embedding = started(model(layers=layers))["embed_tokens"].size  # comes again for its gradient
    assert found.sent == 4 * ((2 * layers - 1) * layer + numbers - layers * layer + embedding)
    small = (layers + 1) * (4 + 1)  # the factor, and whether the gradient is good
    assert found.fetched == 4 * numbers + small
    # The head comes before the layers, the embedding after, and then the factor of the two.
    assert found.fetches == layers + 3
    assert trainer.engine.conveyor.ledger.peak <= 2


def sends(visits):
    """How often a layer is sent to the device: consecutive visits share one passage."""
    order = [visit.layer for visit in visits if visit.layer >= 0]
    return sum(a != b for a, b in zip(order, [-1, *order], strict=False))


def test_schedules_count_their_passages():
    assert sends(layer_major(8, 1)) == sends(layer_major(8, 5)) == 15
    assert sends(checkpointed(8, 1)) == 3 * 8 - 2
    with pytest.raises(InputError, match="one micro-batch; there are 2"):
        checkpointed(8, 2)


def test_resident_layers_never_cross_the_link():
    trainer, state = streamed(model(), on_device=range(4))
    state, _ = trainer.step(state, tokens())
    assert trainer.link.traffic == (0, 0, 0, 0)
    assert np.isfinite(arrays(state.params)[0]).all()


def test_the_score_is_the_mean_loss():
    trainer, state = streamed(model())
    found = trainer.score(state, tokens(rows=6), rows=4)
    expected = jax.jit(model().loss)(started(model()), tokens(rows=6))[1]["nats"]
    np.testing.assert_allclose(float(found["nats"]), float(expected), rtol=1e-6)


@dataclasses.dataclass(frozen=True)
class Pictures:
    """A classifier of pictures whose inputs are a dictionary of integers."""

    stack = "layers"

    def embed(self, rest, inputs):
        flat = inputs["picture"].reshape(-1, 100).astype(jnp.float32) / 255
        return flat @ rest["embed"]

    def block(self, layer, x, index):
        return x + jnp.tanh(x @ layer["w"]), {}

    def finish(self, rest, x, stats, inputs):
        log_p = jax.nn.log_softmax(x @ rest["head"])
        return -jnp.mean(jnp.take_along_axis(log_p, inputs["label"], axis=1)), {}

    def loss(self, params, inputs):
        x = self.embed(params, inputs)
        for w in params["layers"]["w"]:
            x, _ = self.block({"w": w}, x, 0)
        return self.finish(params, x, {}, inputs)


@pytest.mark.parametrize("parts", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_batch_may_be_a_dictionary_of_pictures_and_is_read_whole(parts):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape) / 4, jnp.float32)
    params = {"embed": draw(100, 8), "head": draw(8, 3), "layers": {"w": draw(2, 8, 8)}}
    batch = {
        "picture": jnp.asarray(rng.integers(0, 256, (4, 10, 10)), jnp.uint8),
        "label": jnp.asarray(rng.integers(0, 3, (4, 1)), jnp.int32),
    }
    like = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype), params)
    trainer = Streamed(Pictures(), like, DeviceUpdate(optax.sgd(0.1)), parts=parts)
    state, metrics = trainer.step(trainer.fill(stacked_leaves(named_leaves(params).items())), batch)
    whole = jax.jit(jax.value_and_grad(Pictures().loss, has_aux=True))
    (loss, _), grads = whole(params, batch)
    np.testing.assert_allclose(float(metrics["loss"]), float(loss), rtol=1e-6)
    expected = jax.tree.map(lambda w, g: w - 0.1 * g, params, grads)
    new = jax.tree.map(np.asarray, state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new, expected)
    score = float(trainer.score(state, batch, 2)["loss"])
    np.testing.assert_allclose(score, whole(new, batch)[0][0], rtol=1e-6)
    with pytest.raises(InputError, match="rows is 0; it must be at least 1"):
        trainer.score(state, batch, 0)
    with pytest.raises(InputError, match="expected one first axis, the rows of the batch"):
        trainer.step(state, {**batch, "label": batch["label"][:3]})


@pytest.mark.parametrize(
    ("part", "wrong", "message"),
    [
        ("block", lambda layer, x: (x, {}), r"block is .*\(layer, x\), which is called with 3"),
        (
            "block",
            lambda layer, x, index: x,
            r"block returns a .*; expected \(x, statistics",
        ),
        ("finish", lambda *_: jnp.zeros(()), r"finish returns a .*; expected \(loss, metrics\)"),
        (
            "finish",
            lambda *_: (jnp.zeros(2), {}),
            r"loss of the shape \(2,\) and a dict; expected",
        ),
        (
            "finish",
            lambda *_: (jnp.zeros(()), None),
            "and None; expected a number and a dict",
        ),
    ],
)
def test_a_part_that_takes_or_returns_something_else_is_named(part, wrong, message, monkeypatch):
    monkeypatch.setattr(Pictures, part, staticmethod(wrong))
    params = {"embed": jnp.ones((100, 8)), "head": jnp.ones((8, 3))}
    params |= {"layers": {"w": jnp.ones((2, 8, 8))}}
    batch = {"picture": jnp.ones((4, 10, 10)), "label": jnp.ones((4, 1), jnp.int32)}
    with pytest.raises(InputError, match=message):
        trainer = Streamed(Pictures(), params, DeviceUpdate(optax.sgd(0.1)))
        trainer.step(trainer.state(), batch)


def test_steps_are_compared_wherever_a_schedule_does_not_hide_them():
    rate: Any = optax.join_schedules(
        [optax.constant_schedule(0.0), optax.constant_schedule(LR)], [5]
    )
    mine, weights = (
        AdamW(rate, eps=EPS, weight_decay=0.1),
        {"w": jnp.ones((2, 3)), "b": jnp.ones(3)},
    )
    adamw = optax.adamw(rate, eps=EPS, weight_decay=0.1)
    check = lambda optimizer: check_steps(mine, optimizer, weights, True, False)
    check(adamw)
    bound = optax.stateless(
        lambda u, p: jax.tree.map(lambda u, p: jnp.clip(p + u, -500, 500) - p, u, p)
    )
    for hidden in (optax.nadamw(rate, eps=EPS, weight_decay=0.1), optax.chain(adamw, bound)):
        with pytest.raises(InputError, match="the optimizer's steps are others"):
            check(hidden)


def test_what_cannot_be_streamed_is_said():
    with pytest.raises(InputError, match="expected a dictionary with stacked layers in 'layers'"):
        Streamed(model(), {"blocks": {"w": jnp.ones((2, 3))}}, update("device"))
    with pytest.raises(
        InputError, match="'layers' is a list of 2; blocks that are walked one by o"
    ):
        Streamed(model(), {"layers": [{"w": jnp.ones(3)}, {"w": jnp.ones(4)}]}, update("device"))
    uneven = {"layers": {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 3))}}
    with pytest.raises(InputError, match="expected the same number of layers in all"):
        Streamed(model(), uneven, update("device"))
    none = {"layers": {"a": jnp.ones((0, 3))}}
    with pytest.raises(InputError, match="same number of layers in all, at least one"):
        Streamed(model(), none, update("device"))
    with pytest.raises(InputError, match="on_device names bundle 99; there are 0 to 3"):
        streamed(model(), on_device=[99])
    with pytest.raises(InputError, match="depth is 0; it must be at least 1"):
        streamed(model(), depth=0)
    with pytest.raises(InputError, match="object has no stack, embed, block, finish"):
        Streamed(cast(Any, object()), {"layers": {}}, update("device"))
    with pytest.raises(InputError, match="clip_by is 'all'"):
        streamed(model(), clip=Clip(1.0, cast(Any, "all")))
    with pytest.raises(InputError, match="4 sequences cannot be cut into 3"):
        trainer, state = streamed(model(), parts=3)
        trainer.step(state, tokens())
    with pytest.raises(InputError, match="the optimizer also keeps"):
        streamed(model(), "host", optax.sgd(0.1, momentum=0.9))
    with pytest.raises(InputError, match="hyperparams/b1, and a change of it would not"):
        streamed(model(), "host", optax.inject_hyperparams(optax.adam)(LR, eps=EPS))
    before = (
        *(optax.clip_by_block_rms(1.0), optax.add_decayed_weights(1e-4), optax.scale(2.0)),
        *(optax.clip(1e5), optax.clip(1e15)),
    )
    for changes in before:  # none has a state
        with pytest.raises(InputError, match="it changes gradients first, or has another b1"):
            streamed(model(), "host", optax.chain(changes, adam()))
    others = (
        *(optax.nadam(LR, eps=EPS), optax.adam(LR, eps=EPS, eps_root=1e-4), optax.adam(LR)),
        *(optax.adam(2 * LR, eps=EPS), optax.adamw(LR, eps=EPS, weight_decay=1e-4)),
    )
    for other in others:  # all keep an Adam's state
        with pytest.raises(InputError, match="the optimizer's steps are others"):
            streamed(model(), "host", other)
