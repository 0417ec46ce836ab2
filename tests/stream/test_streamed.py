"""What a streamed trainer keeps: exact masters, states that come back, tensors in their places."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from springroll.errors import InputError
from springroll.models.decoder import leaves
from springroll.quant.quantize_state import quantize_state
from springroll.quant.split_master import join, with_split_master
from springroll.run import checkpoint
from springroll.stream import host_update
from springroll.stream.clipping import Clip, leading_clip
from springroll.stream.conveyor import BrokenRule, Ledger
from springroll.stream.device_update import DeviceUpdate
from springroll.stream.fill_store import bundled_leaves, fill, stacked_leaves
from springroll.stream.link import Link, ThrottledLink
from springroll.stream.store import HostStore
from springroll.stream.streamed import Streamed
from springroll.stream.update import PlacedUpdate
from tests.stream.streaming import adam, arrays, model, shapes, started, streamed, tokens, update


def run(trainer, state, first, last):
    metrics = {}
    for i in range(first, last):
        state, metrics = trainer.step(state, tokens(i))
    return state, metrics


def bits(tree):
    return [x.tobytes() for x in arrays(tree)]


def low_of(optimizer):
    found = jax.tree_util.tree_leaves_with_path(optimizer)
    return [
        np.asarray(leaf)
        for path, leaf in found
        if any(getattr(key, "name", "") == "low" for key in path)
    ]


def joined(high, low):
    return join(jnp.asarray(np.asarray(high)), jnp.asarray(low))


@pytest.mark.parametrize("where", [pytest.param("device", marks=pytest.mark.slow), "host"])
def test_halves_are_the_float32_that_filled_them(where):
    _trainer, state = streamed(model(), where, with_split_master(adam()), narrow=True)
    high, low = jax.tree.leaves(state.params["layers"]), low_of(state.optimizer.layers)
    for h, l, w in zip(high, low, arrays(started(model())["layers"]), strict=True):
        assert h.dtype == jnp.bfloat16 and l.dtype == np.int16
        np.testing.assert_array_equal(np.asarray(joined(h, l)), w)


def test_the_host_moves_the_exact_master_the_device_moves():
    ends = []
    for where in ("device", "host"):
        trainer, state = streamed(model(), where, with_split_master(adam()), narrow=True)
        state, _ = run(trainer, state, 0, 3)
        high, low = jax.tree.leaves(state.params["layers"]), low_of(state.optimizer.layers)
        ends.append([joined(h, l) for h, l in zip(high, low, strict=True)])
    start = arrays(started(model())["layers"])
    for there, here, before in zip(*ends, start, strict=True):
        moved = np.linalg.norm(there - before)
        # XLA multiplies and adds at once, the host in two roundings.
        assert np.linalg.norm(there - here) < 1e-5 * moved + 1e-7


@pytest.mark.parametrize(
    ("where", "optimizer"),
    [
        pytest.param("host", with_split_master(adam()), marks=pytest.mark.slow),
        # Codes of the largest matrices of a layer and of the rest, plain moments of the others.
        ("device", with_split_master(quantize_state(adam(), bits=8, min_size=2048))),
    ],
)
def test_a_checkpoint_brings_back_the_same_bytes(tmp_path, where, optimizer):
    make = lambda: streamed(model(), where, optimizer, narrow=True, depth=2)
    trainer, state = make()
    state, _ = run(trainer, state, 0, 2)
    checkpoint.save(tmp_path, 2, state, {})
    whole, _ = run(trainer, state, 2, 4)
    other, blank = make()
    found, notes = checkpoint.load_newest(tmp_path, blank)
    assert found is not None and not notes
    again, _ = run(other, found.tree, 2, 4)
    assert bits(again) == bits(whole)


def test_reading_a_leaf_waits_for_its_update():
    trainer, state = streamed(model(), "host")
    before = bits(state.params)
    state, _ = trainer.step(state, tokens())
    assert bits(state.params) != before  # no settle in between
    assert jax.block_until_ready(state.params["norm"]) is state.params["norm"]


def test_tensors_go_where_they_belong():
    _trainer, state = streamed(model())
    params = started(model())
    layers = [jax.tree.map(lambda a, i=i: np.asarray(a[i]), params["layers"]) for i in range(3)]
    rest = {k: np.asarray(v) for k, v in params.items() if k != "layers"}
    other = Streamed(model(), shapes(model()), update("device"))
    again = other.fill(bundled_leaves([*layers, rest]))
    assert bits(again.params) == bits(state.params) == bits(params)


def test_tensors_that_are_missing_or_of_another_shape_are_named():
    trainer, _ = streamed(model())
    everything = list(stacked_leaves(leaves(model().config, jax.random.key(0))))
    with pytest.raises(InputError, match="1 parameters have no values, norm among them"):
        fill(trainer.store, iter([t for t in everything if t[0] != "norm"]), shapes(model()))
    with pytest.raises(InputError, match=r"norm has the shape \[3\]; expected \[32\]"):
        fill(trainer.store, iter([("norm", (), np.zeros(3))]), shapes(model()))
    with pytest.raises(InputError, match="layers/mlp/up is no parameter of the model"):
        fill(trainer.store, iter([("layers/mlp/up", (), np.zeros(3))]), shapes(model()))


def test_host_memory_is_what_the_recipe_says():
    _trainer, state = streamed(model(), "host", with_split_master(adam()), narrow=True)
    numbers = model().config.parameters
    size = sum(x.nbytes for x in arrays((state.params, state.optimizer)))
    assert 12 * numbers <= size <= 12 * numbers + 64  # and a few counters
    moments = with_split_master(quantize_state(adam(), bits=8, min_size=1))
    _trainer, state = streamed(model(), "device", moments, narrow=True)
    size = sum(x.nbytes for x in arrays((state.params, state.optimizer)))
    small = 24 * 64 * 8  # leaves as small as these do not fill their last blocks
    assert size <= 6.3 * numbers + small


def test_a_view_outlives_its_store():
    store = HostStore(Link())
    given = np.arange(6, dtype=np.float32)
    store.append({"weights": {"w": given}})
    view = store.views(0, ("weights",))["weights"]["w"]
    view[:] = 7
    assert given[1] == 1 and store.leaf(0, "weights", 0)[1] == 7
    del store
    np.testing.assert_array_equal(view, np.full(6, 7, np.float32))


def test_memory_that_cannot_be_locked_falls_back_with_a_warning(monkeypatch):
    store = HostStore(Link())

    def refuse(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of page-locked memory")

    monkeypatch.setattr(jax, "device_put", refuse)
    with pytest.warns(UserWarning, match="could not be page-locked .*RESOURCE_EXHAUSTED"):
        store.append({"weights": {"w": np.ones(3)}})
    store.append({"weights": {"w": np.ones(3)}})  # says it once
    assert isinstance(store.arrays(1, ("weights",))["weights"]["w"], np.ndarray)


def test_pageable_memory_trains_to_the_same_weights(monkeypatch):
    expected = bits(run(*streamed(model(), "host"), 0, 2)[0].params)
    monkeypatch.setattr(Link, "on_host", None)
    assert bits(run(*streamed(model(), "host"), 0, 2)[0].params) == expected


@pytest.mark.slow  # `test_streamed_population.py` has a slow link too
def test_a_throttled_link_changes_nothing_but_the_time():
    expected = bits(run(*streamed(model()), 0, 2)[0].params)
    link = ThrottledLink(1e9)
    assert bits(run(*streamed(model(), link=link), 0, 2)[0].params) == expected
    assert link.busy["send"] > 0 and link.busy["fetch"] > 0
    link.close()


def test_the_ledger_refuses_what_the_rules_forbid():
    ledger = Ledger(2)
    ledger.arrive(9, 1, held=True)
    ledger.arrive(0, 10)
    ledger.arrive(1, 10)
    with pytest.raises(BrokenRule, match="sent to the device twice"):
        ledger.arrive(1, 10)
    with pytest.raises(BrokenRule, match="bundle 1 is written while it is on the device"):
        ledger.writing(1)
    with pytest.raises(BrokenRule, match="3 bundles are on the device; the limit is 2"):
        ledger.arrive(2, 10)


def test_what_fails_while_updating_comes_out_where_it_is_waited_for(monkeypatch):
    def fails(state, weights):
        raise InputError("no moments")

    trainer, state = streamed(model(), "host")
    monkeypatch.setattr(host_update, "adam_state", fails)
    trainer.step(state, tokens())
    with pytest.raises(InputError, match="no moments"):
        trainer.store.settle()


def test_gradients_that_wait_are_bounded_and_change_nothing():
    expected = bits(run(*streamed(model(), "host"), 0, 2)[0].params)
    trainer = Streamed(model(), shapes(model()), update("host", waiting=1))
    state = trainer.fill(stacked_leaves(leaves(model().config, jax.random.key(0))))
    assert bits(run(trainer, state, 0, 2)[0].params) == expected


def clipped(norm=0.5, inner=None):
    return optax.chain(optax.clip_by_global_norm(norm), adam() if inner is None else inner)


@pytest.mark.parametrize("where", ["device", pytest.param("host", marks=pytest.mark.slow)])
def test_a_chain_that_clips_first_is_the_global_clip(where):
    """Bit for bit that of `clip`, and its state has the structure of the chain's."""
    asked, _ = run(*streamed(model(), where, clip=Clip(0.5)), 0, 2)
    found, _ = run(*streamed(model(), where, optax.chain(clipped(), optax.identity())), 0, 2)
    assert bits(found.params) == bits(asked.params)
    placed = PlacedUpdate(DeviceUpdate(clipped()), update(where, clipped()))
    assert Streamed(model(), shapes(model()), placed).engine.clip == Clip(0.5)
    params = {"w": jnp.ones(3)}
    norm, without = leading_clip(clipped())
    assert norm == 0.5
    assert jax.tree.structure(without.init(params)) == jax.tree.structure(clipped().init(params))


def test_two_clips_are_one_too_many():
    whole = shapes(model())
    with pytest.raises(
        InputError, match=r"clip is 1 by 'layer', and the optimizer clips by the gl"
    ):
        Streamed(model(), whole, DeviceUpdate(clipped()), clip=Clip(1.0, "layer"))
    with pytest.raises(
        InputError, match=r"layers clips by the norm 0\.5 and that of the rest does"
    ):
        DeviceUpdate(clipped(), adam())
    with pytest.raises(InputError, match=r"does not clip and that of the rest clips by the norm 2"):
        DeviceUpdate(adam(), clipped(2.0))
    with pytest.raises(InputError, match="DeviceUpdate wraps an optax transformation"):
        DeviceUpdate(adam(), 3)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("where", ["device", "host"])
def test_what_looks_at_all_gradients_together_is_refused(where):
    """A bundle's own norm would be clipped, of steps as of gradients that another link changed."""
    late = optax.chain(adam(), optax.clip_by_global_norm(1.0))
    second = optax.chain(optax.scale(2.0), optax.clip_by_global_norm(1.0), adam())
    inside = with_split_master(clipped())
    for each in (late, second, inside):
        with pytest.raises(InputError, match=r"optax\.clip_by_global_norm looks at.*clip=Clip\("):
            Streamed(model(), shapes(model()), update(where, each))
