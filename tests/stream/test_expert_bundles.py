"""Layers that come as attention, then a few experts at a time: the same steps and files."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from springroll.errors import InputError
from springroll.models.decoder import leaves
from springroll.models.expert_stages import expert_stages
from springroll.models.moe import balance
from springroll.quant.split_master import join, with_split_master
from springroll.run import checkpoint
from springroll.stream.bundles import Part, experts_apart, kinds, numbers, overlap, whole_layers
from springroll.stream.clipping import Clip
from springroll.stream.conveyor import Conveyor
from springroll.stream.engine import Engine
from springroll.stream.fill_store import bundled_leaves, fill, stacked_leaves
from springroll.stream.stored_leaves import StoredLeaf
from springroll.stream.streamed import Streamed
from springroll.stream.update import PlacedUpdate
from tests.stream.streaming import (
    adam,
    arrays,
    distance,
    gradient,
    model,
    shapes,
    started,
    tokens,
    update,
    whole,
)

STEPS = 3
LAYERS = 2


def moe():
    return model("moe-tiny", LAYERS)


@functools.cache
def reference():
    """(params, loss and norm of each step) of ordinary training."""
    return whole(moe(), STEPS)


def trainer_of(where="device", optimizer=None, together=2, adjust=None, **options):
    there = [update(kind, optimizer, adjust=adjust) for kind in ("device", where)]
    return Streamed(
        expert_stages(moe(), together),
        shapes(moe()),
        PlacedUpdate(*there),
        bundles=experts_apart(shapes(moe()), together),
        **options,
    )


def streamed(*args, **options):
    trainer = trainer_of(*args, **options)
    return trainer, trainer.fill(stacked_leaves(leaves(moe().config, jax.random.key(0))))


def run(trainer, state, first=0, last=STEPS):
    seen = []
    for i in range(first, last):
        state, metrics = trainer.step(state, tokens(i))
        seen.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    return state, seen


def bits(tree):
    return [x.tobytes() for x in arrays(tree)]


@pytest.mark.slow
def test_gradients_are_those_of_the_whole_model():
    # With plain descent at a rate of 1 the change of the weights is the gradient.
    trainer, state = streamed(optimizer=optax.sgd(1.0))
    state, metrics = trainer.step(state, tokens())
    (_, figures), grads = gradient(moe())(started(moe()), tokens())
    before = arrays(started(moe()))
    for a, b, expected in zip(before, arrays(state.params), arrays(grads), strict=True):
        largest = max(float(np.max(np.abs(expected))), 1e-3)
        np.testing.assert_allclose(a - b, expected, atol=1e-5 * largest + 1e-7)
    np.testing.assert_array_equal(np.asarray(metrics["load"]), np.asarray(figures["load"]))
    np.testing.assert_allclose(float(metrics["switch"]), float(figures["switch"]), rtol=1e-6)


@pytest.mark.parametrize(
    ("where", "options"),
    [
        pytest.param("device", {"depth": 2}, marks=pytest.mark.slow),
        pytest.param("device", {"parts": 2, "kept_inputs": 0}, marks=pytest.mark.slow),
        ("host", {"kept_inputs": 3, "clip": Clip(1e6), "on_device": (1, 4)}),
    ],
)
def test_n_steps_end_where_the_whole_model_does(where, options):
    params, expected = reference()  # without losses on the routing, parts have no part in it
    state, seen = run(*streamed(where, **options))
    for leaf in jax.tree.leaves((state.params, state.optimizer)):  # as checkpoints are written
        if isinstance(leaf, StoredLeaf):
            pieces = [np.ravel(piece) for piece in leaf.slices()]
            np.testing.assert_array_equal(np.concatenate(pieces), np.ravel(np.asarray(leaf)))
    np.testing.assert_allclose(seen, expected, rtol=1e-5)
    assert distance(state.params, params) < 1e-5 * distance(params, started(moe()))


@pytest.mark.parametrize("by", ["layer", pytest.param("global", marks=pytest.mark.slow)])
def test_clipping_by_bundle_and_of_all_of_them(by):
    limit = 0.1
    trainer, state = streamed(optimizer=optax.sgd(1.0), clip=Clip(limit, by))
    before = [jax.tree.map(np.copy, trainer.store.views(i, ("weights",))) for i in range(7)]
    trainer.step(state, tokens())
    trainer.store.settle()
    moved = [
        distance(trainer.store.views(bundle, ("weights",)), old)
        for bundle, old in enumerate(before)
    ]
    if by == "layer":
        assert max(moved) < limit * 1.001
    else:
        np.testing.assert_allclose(np.linalg.norm(moved), limit, rtol=1e-3)


@pytest.mark.parametrize("where", ["device", pytest.param("host", marks=pytest.mark.slow)])
def test_routers_are_adjusted_with_the_figures_of_their_layer(where):
    at = lambda layer: layer["mlp"].get("e_score_correction_bias")

    def adjust(layer, stats):
        if at(layer) is None:
            assert not stats
            return layer
        bias = balance(at(layer), stats["load"])
        return layer | {"mlp": layer["mlp"] | {"e_score_correction_bias": bias}}

    trainer, state = streamed(where, adjust=adjust)
    state, metrics = trainer.step(state, tokens())
    biases = np.asarray(state.params["layers"]["mlp"]["e_score_correction_bias"])
    begun = started(moe())["layers"]["mlp"]["e_score_correction_bias"]
    expected = jax.vmap(balance)(begun, metrics["load"])
    np.testing.assert_allclose(biases, np.asarray(expected), atol=1e-7)


@pytest.mark.slow  # that a state comes back is in `test_streamed.py`
def test_a_checkpoint_holds_the_parameters_of_the_model_and_resumes_bit_for_bit(tmp_path):
    make = lambda: trainer_of("host")
    trainer = make()
    state = trainer.fill(stacked_leaves(leaves(moe().config, jax.random.key(0))))
    assert jax.tree.structure(state.params) == jax.tree.structure(shapes(moe()))
    assert [x.shape for x in jax.tree.leaves(state.params)] == [
        x.shape for x in jax.tree.leaves(shapes(moe()))
    ]
    state, _ = run(trainer, state, 0, 1)
    checkpoint.save(tmp_path, 1, state, {})
    expected, _ = run(trainer, state, 1, 3)
    other = make()
    found, notes = checkpoint.load_newest(tmp_path, other.state())
    assert found is not None and not notes
    again, _ = run(other, found.tree, 1, 3)
    assert bits(again) == bits(expected)


def test_a_window_holds_groups_of_experts_and_weights_cross_twice():
    trainer, state = streamed("host", depth=1)
    trainer.step(state, tokens())
    trainer.store.settle()
    bundles = trainer.bundles
    last = numbers([bundles[-2]])  # forward and backward in one passage
    rest = numbers([bundles[-1]])
    rest += bundles[-1]["embed_tokens"].struct.size  # again for its gradient
    assert trainer.link.traffic.sent == 4 * (2 * numbers(bundles[:-1]) - last + rest)
    assert trainer.engine.conveyor.ledger.peak == 1
    layer = numbers(whole_layers(shapes(moe()))[:1])
    assert max(numbers([bundle]) for bundle in bundles[:-1]) < layer


@pytest.mark.slow
def test_inputs_are_kept_once_for_all_experts_of_a_layer():
    trainer, state = streamed("host", kept_inputs=0)
    trainer.step(state, tokens())
    trainer.store.settle()
    rows, width = 4 * 8, moe().config.hidden
    inputs = rows * width, rows * (width + 4)  # of attention, and of all the experts together
    figures = 4 + 2  # of a router: loads and two losses
    bundles = len(trainer.bundles) * (4 + 1)  # the factor, and whether the gradient is good
    gradients = moe().config.parameters
    assert trainer.link.traffic.fetched == bundles + 4 * (
        gradients + LAYERS * (figures + sum(inputs))
    )


@pytest.mark.slow
def test_tensors_find_their_bundles_however_they_come():
    params = started(moe())
    trainer, state = streamed()
    assert bits(state.params) == bits(params)
    layers = [
        jax.tree.map(lambda a, i=i: np.asarray(a[i]), params["layers"]) for i in range(LAYERS)
    ]
    rest = {k: np.asarray(v) for k, v in params.items() if k != "layers"}
    state = trainer_of().fill(bundled_leaves([*layers, rest]))
    assert bits(state.params) == bits(params)
    trainer = trainer_of(together=2)

    def one_by_one():
        for path, values in jax.tree_util.tree_leaves_with_path(params):
            spelt = jax.tree_util.keystr(path, simple=True, separator="/")
            experts = range(4) if "/experts/" in spelt else [None]
            for i in range(LAYERS if spelt.startswith("layers") else 0):
                for e in experts:
                    index = (i,) if e is None else (i, e)
                    yield spelt, index, np.asarray(values[index])
            if not spelt.startswith("layers"):
                yield spelt, (), np.asarray(values)

    fill(trainer.store, one_by_one(), shapes(moe()), trainer.bundles)
    assert bits(trainer.state().params) == bits(params)


@pytest.mark.slow  # as `test_streamed.py` does, with whole layers
def test_halves_of_experts_are_the_float32_that_filled_them():
    _, state = streamed("device", with_split_master(adam()), narrow=True)
    name = "gate_proj"
    high = np.asarray(state.params["layers"]["mlp"]["experts"][name])
    lows = [
        np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.optimizer.layers[1])
        if any(getattr(key, "name", "") == "low" for key in path)
        and jax.tree_util.keystr(path, simple=True, separator="/").endswith(name)
    ]
    (low,) = lows
    given = np.asarray(started(moe())["layers"]["mlp"]["experts"][name])
    np.testing.assert_array_equal(
        np.asarray(join(jnp.asarray(high), jnp.asarray(low.reshape(high.shape)))), given
    )


def test_parts_and_where_they_overlap():
    part = Part("w", (3, 8, 5), np.float32, (1, slice(4, 6)))
    assert part.shape == (2, 5)
    assert overlap(part, (0,)) is None and overlap(part, (1, 3)) is None
    assert overlap(part, (1, 5)) == ((), (1,))
    values = np.arange(3 * 8 * 5).reshape(3, 8, 5)
    for index in ((), (1,)):
        found = overlap(part, index)
        assert found is not None
        from_, there = found
        out = np.zeros((2, 5), int)
        out[there] = values[index][from_]
        np.testing.assert_array_equal(out, values[1, 4:6])
    assert overlap(Part("n", (4,), np.float32), ()) == ((), ())


def test_bundles_are_of_three_kinds_and_lose_nothing():
    bundles = experts_apart(shapes(moe()), 1)
    assert [len(alike) for alike in kinds(bundles)] == [LAYERS, LAYERS * 4, 1]
    assert numbers(bundles) == moe().config.parameters
    assert [len(alike) for alike in kinds(whole_layers(shapes(moe())))] == [LAYERS, 1]


def test_the_order_that_computes_whole_layers_again_is_refused():
    trainer = trainer_of()
    conveyor = Conveyor(trainer.store, trainer.link)
    with pytest.raises(InputError, match="computes whole layers; take layer-major"):
        Engine(expert_stages(moe(), 2), conveyor, update("device"), order="checkpointed")
