"""The trainer with other weights, optimizers and models, and what it refuses."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import springroll as sr
from springroll.errors import InputError
from springroll.quant.quantize_state import quantize_state
from springroll.subspace import schedule
from springroll.subspace.lowgrad import lowgrad
from springroll.thin.custom_product import product
from springroll.thin.discovery import discover
from tests.subspace.stacked_model import RANK, TOKENS, init, loss

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(8, 20)), jnp.float32)
Y = jnp.asarray(RNG.normal(size=(8, 10)), jnp.float32)


def mlp(params, x, y):
    h = jnp.tanh(x @ params["w1"].astype(x.dtype) + params["b"][None].astype(x.dtype))
    return jnp.mean(jnp.square(h @ params["w2"].astype(x.dtype) - y))


def mlp_params(dtype=jnp.float32):
    draw = lambda *s: jnp.asarray(np.random.default_rng(1).normal(size=s) / np.sqrt(s[0]), dtype)
    return {"w1": draw(20, 24), "b": jnp.zeros(24, dtype), "w2": draw(24, 10)}


def tiny(optimizer=None, params=None, fn=mlp, **options):
    options = {"rank": 9, "refresh_interval": 3, "turns": 1, **options}
    params = mlp_params() if params is None else params
    return lowgrad(fn, params, optimizer or optax.adam(1e-2), X, Y, **options)


def run(trainer, steps, params=None):
    state = trainer.init(mlp_params() if params is None else params)
    metrics = {}
    for _ in range(steps):
        state, metrics = trainer.update(state, X, Y)
    return state, metrics


OPTIMIZERS = {
    "clipped, scheduled": optax.chain(
        optax.clip_by_global_norm(0.5), optax.adamw(optax.cosine_decay_schedule(1e-2, 100))
    ),
    "sgd with momentum": optax.sgd(0.02, momentum=0.9),
    "muon": optax.contrib.muon(1e-2),
    "multi steps": optax.MultiSteps(optax.adam(1e-2), 2),
    "8-bit": quantize_state(optax.adam(1e-2), min_size=64),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_inner_optimizer_trains_S(name):
    trainer = tiny(OPTIMIZERS[name], refresh="random")
    _, metrics = run(trainer, 9)
    start = mlp(mlp_params(), X, Y)
    assert metrics["loss"] < start and np.isfinite(metrics["loss"])
    assert int(metrics["skipped"]) == 0


def test_options_train_too():
    _, metrics = run(tiny(moments="reset", scale=1.0), 7)
    assert metrics["loss"] < mlp(mlp_params(), X, Y)


def test_bfloat16_weights_change_once_per_period_and_are_right_on_average():
    params = mlp_params(jnp.bfloat16)
    trainer = tiny(optax.sgd(1e-2), params=params, refresh="random")
    state = trainer.init(mlp_params(jnp.bfloat16))
    state, _ = trainer.update(state, X, Y)
    before = np.asarray(state.base["w1"], np.float32)
    state, _ = trainer.update(state, X, Y)
    np.testing.assert_array_equal(before, np.asarray(state.base["w1"], np.float32))
    exact = np.asarray(trainer.weights(state)["w1"].dense(jnp.float32))
    ends = []
    for seed in range(64):
        again = tiny(optax.sgd(1e-2), params=params, roles=trainer.roles, seed=seed)
        again.compiled.update(trainer.compiled)  # the seed only makes keys
        copy = dataclasses.replace(jax.tree.map(jnp.array, state), schedule=state.schedule)
        ends.append(np.asarray(again.merge(copy).base["w1"], np.float32))
    assert ends[0].dtype == np.float32 and np.any(ends[0] != ends[1])
    unit = np.abs(exact) * 2.0**-7
    assert np.all(np.abs(ends[0] - exact) <= unit + 1e-9)
    assert np.abs(np.mean(ends, axis=0) - exact).mean() < 0.1 * unit.mean()


def test_int8_codes_change_at_a_merge_by_rounding_at_random():
    scale = jnp.float32(0.02)

    def fn(params, x, y):
        return jnp.mean(jnp.square((x @ params["w"].astype(jnp.float32)) * scale - y))

    codes = jnp.asarray(np.random.default_rng(3).integers(-90, 90, (20, 10)), jnp.int8)
    trainer = tiny(optax.adam(3.0), params={"w": codes}, fn=fn, scale=1.0, refresh="random")
    state = trainer.init({"w": codes})
    losses = []
    for _ in range(8):
        state, metrics = trainer.update(state, X, Y)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.9 * losses[0]
    exact = np.asarray(trainer.weights(state)["w"].dense(jnp.float32))
    nearest = np.asarray(trainer.params(state)["w"])
    np.testing.assert_array_equal(nearest, np.clip(np.round(exact), -127, 127))
    merged = np.asarray(trainer.merge(state).base["w"])
    assert merged.dtype == np.int8 and np.all(np.abs(merged - exact) < 1)


def test_a_step_that_is_not_finite_is_skipped_and_counted():
    trainer = tiny()
    state, _ = run(trainer, 2)
    before = jax.tree.map(np.asarray, state)
    bad = X.at[0, 0].set(jnp.nan)
    state, metrics = trainer.step(state, bad, Y)
    assert not np.isfinite(metrics["loss"]) and int(metrics["skipped"]) == int(state.skipped) == 1
    for field in ("base", "projectors", "low", "opt"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, field), getattr(before, field))
    state, metrics = trainer.refresh(state, bad, Y)  # nor does such a batch choose a subspace
    for field in ("base", "projectors", "low", "opt"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, field), getattr(before, field))
    state, metrics = trainer.update(state, X, Y)
    assert np.isfinite(metrics["loss"]) and int(state.skipped) == 2


def test_aux_is_averaged_over_micro_batches():
    def fn(params, x, y):
        return mlp(params, x, y), {"mean": jnp.mean(x), "rows": jnp.int32(x.shape[0])}

    trainer = tiny(fn=fn, has_aux=True, accumulate=2)
    _, metrics = trainer.step(trainer.init(mlp_params()), X, Y)
    np.testing.assert_allclose(metrics["aux"]["mean"], jnp.mean(X), rtol=1e-5)
    assert int(metrics["aux"]["rows"]) == 8  # counts add up


def test_layers_take_turns_and_wide_overlap_waits_longer():
    trainer = lowgrad(
        loss, init(), optax.adam(1e-3), TOKENS, rank=RANK, refresh_interval=6, turns=3
    )
    streams = trainer.layout.streams
    times = {s.name: [[] for _ in range(s.depth)] for s in streams}
    now = schedule.start(streams, 6)
    for step in range(15):
        chosen = schedule.due(now)
        for name, layers in chosen.items():
            for layer in np.flatnonzero(layers):
                times[name][layer].append(step)
        if any(c.any() for c in chosen.values()):
            now = schedule.refreshed(now, streams, chosen, 3)
        now = schedule.advanced(now)
    for layers in times.values():
        assert layers == [[0, 2, 8, 14], [0, 4, 10], [0, 6, 12]]
    name = streams[0].name
    due = {s.name: np.arange(s.depth) == 1 for s in streams}
    overlap = {s.name: np.full(s.depth, 0.9) for s in streams}
    wider = schedule.refreshed(now, streams, due, 3, overlap, widen=0.5)
    assert wider.interval[name].tolist() == [6, 12, 6] and wider.next[name][1] == 15 + 12
    same = schedule.refreshed(now, streams, due, 3, overlap, widen=0.95)
    assert same.interval[name].tolist() == [6, 6, 6]


def experts(params, x, y, group=None):
    group = jnp.array([0, 0, 2, 3], jnp.int32) if group is None else group
    return jnp.mean(jnp.square(_moe(params, x, group)[:, :10] - y))


@product("smn")
def grouped(x, w, group):
    rows = jnp.repeat(group, x.shape[0] // group.shape[0], total_repeat_length=x.shape[0])
    return jnp.einsum("ri,rio->ro", x, w[rows])


def _moe(params, x, group):
    hidden = jax.nn.silu(grouped(x, params["gate"], group)) * grouped(x, params["up"], group)
    return grouped(hidden, params["down"], group)


def expert_params():
    draw = lambda *s: jnp.asarray(np.random.default_rng(4).normal(size=s) / 5, jnp.float32)
    return {"gate": draw(4, 20, 18), "up": draw(4, 20, 18), "down": draw(4, 18, 20)}


@pytest.mark.parametrize("own", [False, True])
def test_experts_share_the_projector_of_a_common_activation(own):
    trainer = tiny(params=expert_params(), fn=experts, own_experts=own)
    state = jax.eval_shape(trainer.init, expert_params())
    shapes = {name: p.shape for name, p in state.projectors.items()}
    assert shapes == {"down": (4, 18, 9), "gate": (4, 20, 9) if own else (20, 9)}


def test_an_expert_that_no_row_meets_stays_exactly_as_it_is():
    trainer = tiny(params=expert_params(), fn=experts)
    state = trainer.init(expert_params())
    before = jax.tree.map(np.asarray, state.base)
    state, first = trainer.update(state, X, Y)
    state, metrics = trainer.update(state, X, Y)
    assert metrics["loss"] < first["loss"]
    after = jax.tree.map(np.asarray, trainer.params(state))
    for name in before:
        np.testing.assert_array_equal(state.low[name][1], 0)
        moved = np.any(after[name] != before[name], axis=(1, 2))
        assert moved.tolist() == [True, False, True, True]


ERRORS = {
    "rank 40 is not below any matrix; the widest is w1": {"rank": 40},
    r"b \[24\] was selected for a projector": {"select": lambda path: True},
    "select chose none": {"select": lambda path: False},
    "rank is 0": {"rank": 0},
    "refresh='powr' is unknown": {"refresh": "powr"},
    "moments='spin' is unknown": {"moments": "spin"},
    "turns is 0": {"turns": 0},
}


@pytest.mark.parametrize("message", ERRORS)
def test_mistakes_are_one_clear_line(message):
    with pytest.raises(InputError, match=message) as error:
        tiny(**ERRORS[message])
    assert "\n" not in str(error.value)


def test_mistakes_in_use():
    with pytest.raises(InputError, match="give an example batch"):
        lowgrad(mlp, mlp_params(), optax.sgd(1.0), rank=4)
    trainer = tiny(accumulate=3)
    state = trainer.init(mlp_params())
    with pytest.raises(InputError, match="accumulated in 3 equal parts"):
        trainer.step(state, X, Y)
    with pytest.raises(InputError, match="the example batch had"):
        trainer.step(state, X)
    with pytest.raises(InputError, match="the trainer was made for"):
        trainer.init({**mlp_params(), "b": jnp.zeros(3)})
    with pytest.raises(InputError, match="another structure"):
        trainer.init({"w1": X})

    def init(params):
        return {"weird": jax.tree.map(jnp.zeros_like, params)}

    strange = optax.GradientTransformation(
        init, lambda updates, state, params=None: (updates, state)
    )
    with pytest.raises(InputError, match="shaped like the low-rank gradient of w1"):
        tiny(strange).init(mlp_params())
    assert tiny(strange, moments="keep").init(mlp_params()).opt


@pytest.mark.parametrize("select", ["w*", ["w2", "w1"], lambda path: path.startswith("w")])
def test_weights_are_selected_by_pattern_or_function(select):
    assert [s.name for s in tiny(select=select).layout.streams] == ["w1", "w2"]
    with pytest.raises(InputError, match="select pattern 'v1' matches no parameter; the nearest"):
        tiny(select=["w1", "v1"])


def test_the_old_name_of_the_refresh_interval_works_with_a_warning():
    old: Any = {"period": 7}
    with pytest.warns(DeprecationWarning, match="'period' of lowgrad is now 'refresh_interval'"):
        trainer = lowgrad(mlp, mlp_params(), optax.sgd(0.1), X, Y, rank=4, **old)
    assert trainer.options.refresh_interval == 7


def test_the_old_name_of_roles_works_with_a_warning():
    roles = discover(mlp, mlp_params(), X, Y)
    old: Any = {"plan": roles}
    with pytest.warns(DeprecationWarning, match="'plan' of lowgrad is now 'roles'"):
        trainer = lowgrad(mlp, mlp_params(), optax.sgd(0.1), rank=4, **old)
    with pytest.warns(DeprecationWarning, match=r"Trainer\.plan is now Trainer\.roles"):
        assert trainer.plan is trainer.roles is roles
    # Parameters that the roles do not know are refused: the roles were read.
    for make in (
        functools.partial(sr.galore, optax.sgd(0.1)),
        functools.partial(sr.fira, 0.1),
        functools.partial(sr.apollo, 0.1),
        functools.partial(sr.apollo_mini, 0.1),
    ):
        name = make.func.__name__
        with pytest.warns(DeprecationWarning, match=f"'plan' of {name} is now 'roles'"):
            tx = make(rank=4, **old)
        jax.eval_shape(tx.init, mlp_params())
        with pytest.raises(InputError, match=r"other \[4, 4\] is not in the roles"):
            tx.init({"other": jnp.ones((4, 4))})


def test_roles_stand_in_for_the_example():
    roles = discover(mlp, mlp_params(), X, Y)
    trainer = lowgrad(mlp, mlp_params(), optax.sgd(0.1), rank=4, roles=roles)
    assert [s.name for s in trainer.layout.streams] == ["w1", "w2"]
