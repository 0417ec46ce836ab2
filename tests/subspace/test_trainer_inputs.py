"""The trainer and what users bring along: batches, keys, modules, checkpoints, traced states."""

import functools
from typing import Any

import equinox
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest

import springroll as sr
from springroll.errors import InputError
from springroll.quant.quantize_state import quantize_state
from springroll.subspace.lowgrad import lowgrad
from tests.subspace.test_trainer import X, Y, mlp, mlp_params, run, tiny


def noisy(params, x, y, noise):
    """A mean over the batch, and what is none: a key, a number, an array for all rows."""
    shift = jax.random.normal(noise["key"], (10,)) * noise["size"]
    return mlp(params, x, y + shift[None] + noise["offset"][None])


@pytest.mark.parametrize(
    "in_axes",
    [
        pytest.param((0, 0, None), marks=pytest.mark.slow),
        [0, 0, {"key": None, "size": 0, "offset": None}],
    ],
)
def test_what_is_no_batch_is_shared_and_keys_are_folded(in_axes):
    noise = {"key": jax.random.key(7), "size": jnp.float32(0.3), "offset": jnp.ones(10)}
    make = lambda axes=0: lowgrad(
        *(noisy, mlp_params(), optax.sgd(1e-2), X, Y, noise), rank=9, accumulate=2, in_axes=axes
    )
    trainer = make(in_axes)
    _, metrics = trainer.step(trainer.init(mlp_params()), X, Y, noise)
    parts = [
        noisy(mlp_params(), X[i::2], Y[i::2], noise | {"key": jax.random.fold_in(noise["key"], i)})
        for i in range(2)
    ]
    np.testing.assert_allclose(metrics["loss"], np.mean(parts), rtol=1e-5)
    for axes, message in {
        (0, 0): "in_axes is .*expected 0 .* for each of the 3 arguments",
        (0, 0, 1): "in_axes is .*expected 0",
        0: "cannot be accumulated in 2 equal parts.*or in_axes say",
    }.items():
        wrong = make(axes)
        state = jax.eval_shape(wrong.init, mlp_params())
        with pytest.raises(InputError, match=message):
            jax.eval_shape(wrong.step, state, X, Y, noise | {"offset": jnp.ones(5)})


def test_the_callers_arrays_stay_unless_they_are_given_away():
    trainer, mine = tiny(), mlp_params()
    state, _ = trainer.step(trainer.init(mine), X, Y)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(mine))
    given, _ = trainer.step(trainer.init(mine, donate=True), X, Y)
    jax.tree.map(np.testing.assert_array_equal, state.low, given.low)
    assert mine["b"].is_deleted()


def test_flax_and_orbax_hold_the_state(tmp_path):
    trainer = tiny(quantize_state(optax.adam(1e-2), min_size=64))
    state, _ = run(trainer, 1)
    stored = flax.serialization.to_bytes(state)
    same = functools.partial(jax.tree.map, np.testing.assert_array_equal)
    back: Any = flax.serialization.from_bytes(trainer.init(mlp_params()), stored)
    same(back, state)
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        same(checkpointer.restore(tmp_path / "state", state), state)
    straight, _ = trainer.update(state, X, Y)
    resumed, _ = trainer.update(back, X, Y)
    same(resumed, straight)


def test_a_module_of_arrays_trains_and_one_with_functions_gets_one_line():
    module = equinox.nn.MLP(20, 10, 24, 1, key=jax.random.key(0))
    arrays, rest = equinox.partition(module, equinox.is_array)

    def fn(arrays, x, y):
        return jnp.mean(jnp.square(jax.vmap(equinox.combine(arrays, rest))(x) - y))

    trainer = lowgrad(fn, arrays, optax.adam(1e-2), X, Y, rank=9, refresh="random")
    state, first = trainer.update(trainer.init(arrays), X, Y)
    state, second = trainer.update(state, X, Y)
    assert isinstance(state.params, equinox.nn.MLP) and second["loss"] < first["loss"]
    with pytest.raises(InputError, match=r"activation is no array but .*eqx\.filter") as error:
        lowgrad(fn, module, optax.adam(1e-2), X, Y, rank=9)
    assert "\n" not in str(error.value)


def test_types_that_cannot_be_merged_are_refused_at_once():
    with pytest.raises(InputError, match="w1 is float16; weights in a subspace are float32"):
        tiny(params=mlp_params(jnp.float16))
    roles = tiny().roles
    params = mlp_params() | {"b": jnp.zeros(24, jnp.complex64)}
    with pytest.raises(InputError, match="b is complex64; lowgrad trains real numbers"):
        lowgrad(mlp, params, optax.adam(1e-2), rank=9, roles=roles)
    with pytest.raises(InputError, match="w is complex64; gradients are projected as real"):
        sr.galore(optax.adam(1e-2), 4).init({"w": jnp.ones((8, 8), jnp.complex64)})


@pytest.mark.parametrize("method", ["update", "refresh", "due", "merge"])
def test_what_the_host_decides_is_refused_under_jit(method):
    trainer = tiny()
    state = jax.eval_shape(trainer.init, mlp_params())
    batch = (X, Y) if method in ("update", "refresh") else ()
    with pytest.raises(InputError, match="decided on the host, not under jit, scan or vmap"):
        jax.eval_shape(lambda state: getattr(trainer, method)(state, *batch), state)
    stepped, _ = jax.eval_shape(trainer.step, state, X, Y)
    assert stepped.schedule.step.shape == ()


def test_swapped_and_wrong_arguments_get_one_line():
    adam: Any = optax.adam(1e-3)
    four: Any = 4
    uncalled: Any = optax.adam
    params: Any = mlp_params()
    cases = {
        "loss is .*; expected a function": lambda: lowgrad(params, mlp, adam, X, Y),
        "lowgrad wraps an optax transformation.*given <function adam": lambda: lowgrad(
            *(mlp, params, uncalled, X, Y)
        ),
        "galore wraps an optax transformation.*given 4": lambda: sr.galore(four, 4),
        "rank is Gradient.*; expected an integer": lambda: sr.galore(four, adam),
        "fira's direction wraps": lambda: sr.fira(0.1, 4, direction=four),
        "quantize_state wraps an optax": lambda: sr.quantize_state(four),
        "with_split_master wraps an optax": lambda: sr.with_split_master(four),
        "with_stochastic_rounding wraps an": lambda: sr.with_stochastic_rounding(four),
        "rank is 4.5; expected an integer": lambda: tiny(rank=4.5),
        "accumulate is nan; expected an integer": lambda: tiny(accumulate=float("nan")),
        "the first argument is .*; expected the state": lambda: tiny().update(params, Y),
        "the first argument is 4; expected the state": lambda: tiny().step(four, X, Y),
    }
    for message, make in cases.items():
        with pytest.raises(InputError, match=message) as error:
            make()
        assert "\n" not in str(error.value)
