"""Optimizer state in few bits: any transformation, through checkpoints, as good as floats."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from springroll.errors import InputError
from springroll.quant.quantize_state import (
    dequantize_state,
    quantize_state,
    requantize_state,
)
from springroll.quant.root_companding import Quantized
from springroll.run import checkpoint
from springroll.trees import tree_bytes
from tests.thin.against_dense import FAST_TO_COMPILE, compiled_text

FAST = functools.partial(jax.jit, compiler_options=FAST_TO_COMPILE)
LAYERS, WIDTH = 2, 64
PARAMS = {"w": jnp.ones((LAYERS, WIDTH, WIDTH)), "b": jnp.zeros((WIDTH,))}


@pytest.fixture(autouse=True)
def lenient_promotion():
    """optax adds ints to floats at init; users of it are not strict."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def gradients(seed):
    keys = jax.random.split(jax.random.key(seed), 2)
    return {
        "w": jax.random.normal(keys[0], PARAMS["w"].shape),
        "b": jax.random.normal(keys[1], PARAMS["b"].shape),
    }


def codes(state):
    nodes = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Quantized))
    return [node for node in nodes if isinstance(node, Quantized)]


TRANSFORMATIONS = {
    "adamw": (optax.adamw(1e-2), 2),
    "lion": (optax.lion(1e-3), 1),
    "muon": (
        optax.contrib.muon(
            1e-2,
            muon_weight_dimension_numbers=lambda p: {  # pyright: ignore[reportArgumentType]
                "w": optax.contrib.MuonDimensionNumbers(1, 2),
                "b": None,
            },
        ),
        1,
    ),
    "momentum": (optax.sgd(1e-2, momentum=0.9), 1),
    "partition": (
        optax.partition(
            {"big": optax.adam(1e-2), "rest": optax.sgd(1e-2)}, {"w": "big", "b": "rest"}
        ),
        2,
    ),
    "masked": (optax.masked(optax.adam(1e-2), {"w": True, "b": False}), 2),
    "injected": (optax.inject_hyperparams(optax.adam)(learning_rate=1e-2), 2),
    "clipped": (optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2)), 2),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_any_transformation_keeps_its_structure_and_nearly_its_updates(name):
    inner, moments = TRANSFORMATIONS[name]
    tx = quantize_state(inner)
    state, exact = FAST(tx.init)(PARAMS), FAST(inner.init)(PARAMS)
    assert len(codes(state)) == moments
    is_quantized = lambda x: isinstance(x, Quantized)
    assert jax.tree.structure(state, is_leaf=is_quantized) == jax.tree.structure(exact)
    step, exact_step = FAST(tx.update), FAST(inner.update)
    updates = exact_updates = PARAMS
    for t in range(3):
        updates, new = step(gradients(t), state, PARAMS)
        exact_updates, exact = exact_step(gradients(t), exact, PARAMS)
        assert jax.tree.structure(new) == jax.tree.structure(state)
        state = new
    difference = np.asarray(updates["w"] - exact_updates["w"])
    off = np.linalg.norm(difference) / np.linalg.norm(exact_updates["w"])
    # Lion takes the sign of its moment: one in a hundred flips where the moment is near zero.
    assert off < (0.15 if name == "lion" else 0.03), off
    np.testing.assert_array_equal(updates["b"], exact_updates["b"])


@pytest.mark.parametrize(("bits", "bytes_each"), [(8, 1 + 4 / 256), (4, 0.5 + 4 / 128)])
def test_bytes_of_the_state(bits, bytes_each):
    params = {"w": jnp.ones((4, 64, 512))}
    tx = quantize_state(optax.scale_by_adam(), bits, stochastic=False)
    state = jax.eval_shape(tx.init, params)
    size = tree_bytes(state)
    assert size == 2 * bytes_each * params["w"].size + 4  # and the count


def test_small_leaves_names_of_parameters_and_other_state_stay_exact():
    params = {"mu": jnp.ones((64, 64)), "nu": jnp.ones(4095)}
    state = FAST(quantize_state(optax.scale_by_adam()).init)(params)
    assert isinstance(state.mu["mu"], Quantized) and state.mu["mu"].signed
    assert isinstance(state.nu["mu"], Quantized) and not state.nu["mu"].signed
    assert isinstance(state.mu["nu"], jax.Array)
    accumulated = quantize_state(optax.MultiSteps(optax.adam(1e-3), 2).gradient_transformation())
    assert isinstance(FAST(accumulated.init)(params).acc_grads["mu"], jax.Array)


def test_select_keeps_the_moments_of_others_exact():
    params = {"embed": jnp.ones((64, 64)), "layers": {"w": jnp.ones((64, 64))}}
    for select in ("layers/*", ["layers/w"], lambda path: "embed" not in path):
        state = FAST(quantize_state(optax.adam(1e-3), select=select).init)(params)
        for moments in (state[0].mu, state[0].nu):
            assert isinstance(moments["embed"], jax.Array)
            assert isinstance(moments["layers"]["w"], Quantized)
    with pytest.raises(InputError, match="select pattern 'embd' matches no parameter; the nearest"):
        quantize_state(optax.adam(1e-3), select="embd").init(params)


def test_optax_finds_what_it_looks_for():
    tx = quantize_state(optax.inject_hyperparams(optax.adam)(learning_rate=1e-2))
    state = optax.tree.set(tx.init(PARAMS), learning_rate=5e-3)
    assert float(optax.tree.get(state, "learning_rate")) == pytest.approx(5e-3)
    assert isinstance(optax.tree.get(state, "mu")["w"], Quantized)


def test_moments_can_be_changed_from_outside():
    tx = quantize_state(optax.adam(1e-2))
    _, state = FAST(tx.update)(gradients(0), FAST(tx.init)(PARAMS), PARAMS)
    floats = dequantize_state(state)
    assert not codes(floats) and floats[0].mu["w"].shape == PARAMS["w"].shape
    turned = floats[0]._replace(mu=jax.tree.map(jnp.negative, floats[0].mu))
    back = requantize_state(state, (turned, *floats[1:]))
    again = dequantize_state(back)[0]
    np.testing.assert_allclose(again.mu["w"], -floats[0].mu["w"], rtol=1e-5)
    plain = optax.adam(1e-2).init(PARAMS)
    assert jax.tree.structure(requantize_state(plain, dequantize_state(plain))) == (
        jax.tree.structure(plain)
    )


def test_checkpoints_hold_it_and_a_resumed_run_goes_on_bit_for_bit(tmp_path):
    tx = quantize_state(optax.adamw(1e-2), 4)
    step = FAST(tx.update)
    _, state = step(gradients(0), FAST(tx.init)(PARAMS), PARAMS)
    path = checkpoint.save(tmp_path, 1, state, {})
    back = checkpoint.load(path, jax.eval_shape(tx.init, PARAMS)).tree
    for t in (1, 2):
        resumed, back = step(gradients(t), back, PARAMS)
        straight, state = step(gradients(t), state, PARAMS)
    jax.tree.map(np.testing.assert_array_equal, (resumed, back), (straight, state))


def test_shards_of_layers_and_rows_stay_where_they_are():
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec(None, "x"))
    params = {"w": jax.device_put(PARAMS["w"], rows)}
    tx = quantize_state(optax.adam(1e-2))
    state = jax.tree.map(
        lambda a: jax.device_put(a, rows) if a.ndim > 1 else a, FAST(tx.init)(params)
    )
    lowered = jax.jit(tx.update).lower(params, state, params)
    text = compiled_text(lowered)
    assert "all-gather" not in text and "all-to-all" not in text and "all-reduce" not in text
    _, new = lowered.compile()(params, state, params)
    assert new[0].mu["w"].codes.sharding.is_equivalent_to(rows, new[0].mu["w"].codes.ndim)


def regression():
    """Two layers that learn a fixed random map; badly scaled inputs, so that Adam matters."""
    keys = jax.random.split(jax.random.key(1), 5)
    x = jax.random.normal(keys[0], (512, WIDTH)) * jnp.exp(jax.random.normal(keys[1], (1, WIDTH)))
    y = jnp.tanh(x @ jax.random.normal(keys[2], (WIDTH, WIDTH)) / 8)
    start = {
        "a": jax.random.normal(keys[3], (WIDTH, 128)) / 8,
        "b": jax.random.normal(keys[4], (128, WIDTH)) / 11,
    }
    return start, lambda p: jnp.mean((jnp.tanh(x @ p["a"]) @ p["b"] - y) ** 2)


def trained(tx, steps=150):
    params, loss = regression()

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    @FAST
    def run(params):
        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), None, length=steps)
        return loss(params)

    return float(run(params))


@pytest.mark.slow
def test_training_is_as_good_as_with_floats():
    schedule = optax.cosine_decay_schedule(1e-2, 150)
    exact = trained(optax.adam(schedule))
    assert trained(quantize_state(optax.adam(schedule))) == pytest.approx(exact, rel=0.01)
    assert trained(quantize_state(optax.adam(schedule), 4)) < 1.1 * exact


def test_bad_input():
    with pytest.raises(InputError, match="bits=5"):
        quantize_state(optax.adam(1e-3), 5)
    with pytest.raises(InputError, match="block=1"):
        quantize_state(optax.adam(1e-3), block=1)
    with pytest.raises(InputError, match=r"finds no moments.*\.slow\['w'\].*first="):
        quantize_state(unknown()).init(PARAMS)
    named = quantize_state(unknown(), first=["slow"])
    assert len(codes(FAST(named.init)(PARAMS))) == 1


class Slow(NamedTuple):
    slow: Any


def unknown():
    return optax.GradientTransformation(
        lambda params: Slow(jax.tree.map(jnp.zeros_like, params)),
        lambda updates, state, params=None: (updates, state),
    )
