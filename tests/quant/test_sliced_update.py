"""Layer by layer the update of coded state is what it is at once, and needs no more memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from springroll.compat import edge_jit
from springroll.quant.quantize_state import dequantize_state, quantize_state
from springroll.quant.sliced_update import MIN_SIZE, update_in_slices
from tests.thin.against_dense import FAST_TO_COMPILE

PARAMS = {
    "w": jnp.ones((3, 40, 96)),  # a layer costs no whole block
    "narrow": jnp.ones((2, 3, 64, 8)),
    "flat": jnp.ones((70, 60)),
    "b": jnp.ones((3, 8)),
}


@pytest.fixture(autouse=True)
def lenient_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


def gradients(seed=0):
    keys = jax.random.split(jax.random.key(seed), len(PARAMS))
    return {n: jax.random.normal(k, p.shape) ** 3 for (n, p), k in zip(PARAMS.items(), keys)}  # noqa: B905


def both(inner, bits=8, steps=2, **options):
    """Updates and decoded states of the loop and of the update at once."""
    fast = functools.partial(jax.jit, compiler_options=FAST_TO_COMPILE)
    start = fast(quantize_state(inner, bits, min_size=512, **options).init)(PARAMS)
    results = []
    for least in (1, 1 << 40):

        def step(grads, state, least=least):
            update = lambda g, s: inner.update(g, s, PARAMS)
            return update_in_slices(update, grads, state, least)

        traced = fast(step).trace(gradients(), start)
        loops, compiled = str(traced.jaxpr).count("scan["), traced.lower().compile()
        state, updates = start, None
        for t in range(steps):
            updates, state = compiled(gradients(t), state)
        results.append((updates, fast(dequantize_state)(state), loops))
    return results


TRANSFORMATIONS = {
    "adamw": optax.adamw(1e-2, weight_decay=0.1, mask={n: n != "w" for n in PARAMS}),
    "clipped": optax.chain(
        optax.clip_by_global_norm(1.0), optax.inject_hyperparams(optax.amsgrad)(learning_rate=1e-2)
    ),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_equals_the_update_at_once(name):
    sliced, whole = both(TRANSFORMATIONS[name], first=["mu", "trace"])
    assert sliced[2] == 2 and whole[2] == 0  # w and narrow have loops
    near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    # A product that is fused differently may fall on the other side of a code: compare most.
    for a, b in zip(jax.tree.leaves(sliced[:2]), jax.tree.leaves(whole[:2]), strict=True):
        same = np.isclose(a, b, rtol=1e-5, atol=1e-6)
        assert same.mean() > 0.995
    near(sliced[0]["b"], whole[0]["b"])


def test_a_transformation_that_looks_at_matrices_is_left_whole():
    dims = optax.contrib.MuonDimensionNumbers(-2, -1)
    inner = optax.contrib.scale_by_muon(
        weight_dimension_numbers=jax.tree.map(lambda p: dims, PARAMS)
    )
    sliced, whole = both(inner, steps=1)
    assert sliced[2] == whole[2]
    assert jax.tree.structure(sliced[0]) == jax.tree.structure(whole[0])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), sliced[0], whole[0]
    )


def test_layers_are_rounded_with_bits_of_their_own_and_a_draw_counts_once():
    inner = optax.sgd(1.0, momentum=0.9)
    params = {"w": jnp.ones((2, 64, 64))}
    grads = {
        "w": jnp.broadcast_to(jax.random.normal(jax.random.key(0), (64, 64))[None], (2, 64, 64))
    }
    state = jax.jit(quantize_state(inner, 4).init)(params)
    update = lambda g, s: inner.update(g, s, params)
    _, after = jax.jit(lambda g, s: update_in_slices(update, g, s, 1))(grads, state)
    codes = after[0].trace["w"].codes
    assert (codes[0] != codes[1]).any()
    assert int(after[0].trace["w"].draws) == int(state[0].trace["w"].draws) + 1


def test_can_be_differentiated_by_the_weights():
    """Low-rank training finds the weight decay of an inner optimizer that way."""
    inner = optax.adamw(0.5, weight_decay=0.1)
    start = {"w": PARAMS["w"]}
    state = jax.jit(quantize_state(inner, min_size=512).init)(start)

    def updates(params):
        return update_in_slices(lambda g, s: inner.update(g, s, params), start, state, min_size=1)[
            0
        ]

    ones = jax.tree.map(jnp.ones_like, start)
    _, slope = jax.jit(lambda p: jax.jvp(updates, (p,), (ones,)))(start)
    jax.tree.map(lambda s: np.testing.assert_allclose(s, -0.05, rtol=1e-5), slope)


@pytest.mark.parametrize("bits", [8, 4])
def test_moments_never_exist_in_floats_together(bits):
    """Temporary memory: the gradients, and of one layer what it takes."""
    shape = jax.ShapeDtypeStruct((32, 128, 256), jnp.float32)
    params = {name: shape for name in "abcd"}
    tx = quantize_state(optax.adamw(1e-3), bits)
    state = jax.eval_shape(tx.init, params)
    assert shape.size >= MIN_SIZE

    def step(params, state, factor):
        grads = jax.lax.optimization_barrier(jax.tree.map(lambda p: p * factor, params))
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    factor = jax.ShapeDtypeStruct((), jnp.float32)
    compiled = edge_jit(step, donate_argnums=(0, 1)).lower(params, state, factor).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    bytes_per_weight = memory.temp_size_in_bytes / (4 * shape.size)
    assert bytes_per_weight < 4.6  # 4 are the gradient
