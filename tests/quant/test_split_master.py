"""bfloat16 weights with their low halves train as float32 weights do, bit for bit."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from springroll.errors import InputError
from springroll.quant import split_master
from springroll.quant.split_master import high_half, with_split_master
from springroll.quant.stochastic_rounding import with_stochastic_rounding
from springroll.trees import PyTree

# The emitter of the quick suite (see conftest.py) contracts products and sums program by program.
_OTHER = "xla_cpu_use_fusion_emitters=false" in os.environ.get("XLA_FLAGS", "")
EMITTER = {"xla_cpu_use_fusion_emitters": True} if _OTHER else {}

split, join = jax.jit(split_master.split), jax.jit(split_master.join)


@pytest.fixture(autouse=True)
def lenient_promotion():
    """`optax.apply_updates` adds float32 to bfloat16."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def bits(x):
    return np.asarray(x, np.float32).view(np.uint32)


def words():
    """Random bit patterns, and every edge of the format."""
    edges = [0x00000001, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0x7F7F7FFF, 0x7F7F8000, 0x7F800000]
    edges += [0x00007FFF, 0x00008000, 0x00008001, 0x3F808000, 0x3F818000, 0]
    random = np.random.default_rng(0).integers(0, 2**32, 200_000, np.uint32)
    both = np.array(edges, np.uint32)
    return np.concatenate([random, both, both | np.uint32(1 << 31)])


def test_every_number_comes_back():
    x = words().view(np.float32)
    high, low = split(x)
    assert high.dtype == jnp.bfloat16 and low.dtype == jnp.int16
    back = np.asarray(join(high, low))
    number = ~np.isnan(x)
    np.testing.assert_array_equal(bits(back)[number], bits(x)[number])
    assert np.isnan(back[~number]).all() and np.isnan(high[~number].astype(np.float32)).all()


def test_the_host_splits_to_the_same_bits():
    with np.errstate(over="raise"):
        for x in (words().view(np.float32), words().view(np.float32).reshape(2, -1)):
            for found, expected in zip(
                split_master.split_on_host(x), split_master.split(jnp.asarray(x)), strict=True
            ):
                assert found.dtype == expected.dtype and found.shape == x.shape
                assert found.tobytes() == np.asarray(expected).tobytes()


def test_the_high_half_is_the_nearest():
    x = words().view(np.float32)
    x = x[np.isfinite(x) & ((words() & 0xFFFF) != 0x8000)]  # a tie has two
    high = np.asarray(split(jnp.asarray(x))[0]).view(np.uint16)
    np.testing.assert_array_equal(high, x.astype(jnp.bfloat16).view(np.uint16))


def gradients(steps, shape):
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.standard_normal((steps, *shape)).astype(np.float32))


def trajectory(tx, params, grads):
    def step(carry, g):
        params, state = carry
        updates, state = tx.update({"w": g, "norm": g[0]}, state, params)
        return (optax.apply_updates(params, updates), state), None

    start, state = params
    run = jax.jit(lambda carry: jax.lax.scan(step, carry, grads)[0], compiler_options=EMITTER)
    return run((start, state))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_trajectory_is_float32s_bit_for_bit(name):
    # sgd with steps as large as the weights: signs change and weights nearly cancel.
    tx = {"adamw": optax.adamw(1e-4), "sgd": optax.sgd(0.5)}[name]
    weights = jax.random.normal(jax.random.key(0), (64, 128))
    params, grads = {"w": weights, "norm": weights[0]}, gradients(50, weights.shape)
    exact, _ = trajectory(tx, (params, tx.init(params)), grads)
    ours = with_split_master(tx)
    mixed = {"w": high_half(params["w"]), "norm": params["norm"]}
    state: PyTree = ours.init(params)
    state = state._replace(low={**state.low, "norm": None})  # that leaf stays in float32
    result, state = trajectory(ours, (mixed, state), grads)
    assert result["w"].dtype == jnp.bfloat16 and result["norm"].dtype == jnp.float32
    np.testing.assert_array_equal(bits(join(result["w"], state.low["w"])), bits(exact["w"]))
    np.testing.assert_array_equal(bits(result["norm"]), bits(exact["norm"]))


def test_a_weight_that_vanishes_stays_consistent():
    tx = with_split_master(optax.sgd(1.0))
    weight = {"w": jnp.array([1.998, 1.0, 0.3], jnp.float32)}
    state: PyTree = tx.init(weight)
    params: PyTree = high_half(weight)
    target = np.array([3e-9, 1e-12, 1e-39], np.float32)
    updates, state = tx.update({"w": weight["w"] - target}, state, params)
    params = optax.apply_updates(params, updates)
    reached = join(params["w"], state.low["w"])
    assert np.all(np.abs(reached - target) <= 2.0**-23)


def test_plain_rounding_loses_what_the_others_keep():
    """Steps of 1e-4 of a weight are below half a unit of bfloat16, 2^-9."""
    weights = {"w": jnp.ones((64, 64)), "norm": jnp.ones((64,))}
    grads = jnp.ones((100, 64, 64))
    low = high_half(weights)
    drift = {}
    for name, tx in {
        "plain": optax.sgd(1e-4),
        "split": with_split_master(optax.sgd(1e-4)),
        "stochastic": with_stochastic_rounding(optax.sgd(1e-4)),
    }.items():
        result, _ = trajectory(tx, (low, tx.init(low)), grads)
        drift[name] = float(jnp.mean(1 - result["w"].astype(jnp.float32)))
    assert drift["plain"] == 0
    assert drift["split"] == pytest.approx(1e-2, abs=2e-3)  # to the nearest bfloat16
    assert drift["stochastic"] == pytest.approx(1e-2, rel=0.03)


def test_stochastic_rounding_differs_by_leaf_and_step_and_repeats():
    tx = with_stochastic_rounding(optax.sgd(1e-3), seed=3)
    params = high_half({"a": jnp.ones((256,)), "b": jnp.ones((256,))})
    grads, state = {"a": jnp.ones((256,)), "b": jnp.ones((256,))}, tx.init(params)
    first: PyTree
    second: PyTree
    first, next_state = tx.update(grads, state, params)
    second, _ = tx.update(grads, next_state, params)
    again: PyTree = tx.update(grads, state, params)[0]
    assert (first["a"] != first["b"]).any() and (first["a"] != second["a"]).any()
    np.testing.assert_array_equal(again["a"], first["a"])


def test_moments_are_float32_and_missing_weights_are_named():
    params = high_half({"w": jnp.ones((4, 4))})
    for make in (with_split_master, with_stochastic_rounding):
        tx = make(optax.adam(1e-3))
        state: PyTree = tx.init(params)
        assert state.inner_state[0].mu["w"].dtype == jnp.float32
        with pytest.raises(InputError, match=make.__name__):
            tx.update(params, state)
    with pytest.raises(InputError, match="bfloat16; expected float32"):
        split(params["w"])


def test_parameters_may_be_numbers_of_python():
    tx = with_split_master(optax.adam(1e-1))
    params = {"w": jnp.ones(3), "scale": 2.0}
    state: PyTree = tx.init(params)
    updates, state = tx.update(params, state, params)
    moved: PyTree = optax.apply_updates(params, updates)
    assert float(moved["scale"]) == pytest.approx(1.9)
