"""Other optimizers inside of galore, fewer bits, several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from springroll.quant.quantize_state import dequantize_state, quantize_state
from springroll.subspace.apollo import apollo
from springroll.subspace.galore import galore
from springroll.subspace.inner_state import find_moments, state_leaves

L, M, N, R = 4, 8, 16, 4


def tree(seed):
    key = jax.random.key(seed)
    return {"w": jax.random.normal(key, (L, M, N)), "b": jax.random.normal(key, (M,))}


PARAMS = tree(0)


def run(tx, steps, place=lambda x: x):
    params = place(PARAMS)
    state = jax.jit(tx.init)(params)

    @jax.jit
    def advance(params, state, grads):
        with jax.numpy_dtype_promotion("standard"):  # for optax's own arithmetic
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

    for step in range(steps):
        params, state = advance(params, state, place(tree(step + 1)))
    return params, state


def muon(rate):
    matrices = lambda params: jax.tree.map(
        lambda x: optax.contrib.MuonDimensionNumbers(-2, -1) if x.ndim > 1 else None, params
    )
    return optax.contrib.muon(rate, muon_weight_dimension_numbers=matrices)


def test_muon_inside_steps_orthogonally_in_the_subspace():
    params, state = run(galore(muon(0.1), R, refresh_interval=4, scale=1.0), 3)
    step = np.asarray(
        jax.jit(galore(muon(0.1), R, scale=1.0).update)(tree(4), state, params)[0]["w"]
    )
    singular = np.linalg.svd(step, compute_uv=False)
    assert (singular[:, R:] < 1e-5).all()
    assert singular[:, :R].max() < 2.0 * singular[:, :R].min()


@pytest.mark.parametrize(
    "inner, orders",
    [
        (optax.adam(0.1), {"mu": "first", "nu": "second"}),
        (optax.lion(0.1), {"mu": "first"}),
        (optax.sgd(0.1, momentum=0.9), {"trace": "first"}),
        (optax.amsgrad(0.1), {"mu": "first", "nu": "second", "nu_max": "second"}),
        (muon(0.1), {"mu": "first"}),
        (
            optax.MultiSteps(optax.adam(0.1), 2),
            {"mu": "first", "nu": "second", "acc_grads": "first"},
        ),
    ],
)
def test_moments_are_found_by_name(inner, orders):
    state = jax.eval_shape(inner.init, PARAMS)
    leaves, _ = state_leaves(state)
    paths = jax.tree_util.tree_leaves_with_path(state)
    found = find_moments(state, {"w": (L, M, N)})
    names = {}
    for moment in found:
        assert moment.path == "w" and leaves[moment.at].shape == (L, M, N)
        fields = [getattr(key, "name", "") for key in paths[moment.at][0]]
        names[next(name for name in fields if name in orders)] = moment.order
    assert names == orders


def test_fewer_bits_follow_the_exact_state():
    """Through two refreshes of every matrix, decoded, rotated and coded again."""
    exact, floats = run(galore(optax.adam(0.02), R, refresh_interval=4, moments="fill"), 9)
    coded = quantize_state(optax.adam(0.02), 8, block=16, min_size=8)
    near, codes = run(galore(coded, R, refresh_interval=4, moments="fill"), 9)
    moved = jax.tree.map(lambda a, b: jnp.linalg.norm(a - b), exact, PARAMS)
    gap = jax.tree.map(lambda a, b: jnp.linalg.norm(a - b), exact, near)
    assert float(gap["w"]) < 0.05 * float(moved["w"])
    assert jax.tree.leaves(codes)[0].size > 0 and np.isfinite(near["w"]).all()
    decoded = dequantize_state(codes).inner
    assert decoded[0].mu["w"].shape == floats.inner[0].mu["w"].shape == (L, R, N)


def on_adamw():
    return galore(optax.adamw(0.05), R, refresh_interval=3)


@pytest.mark.parametrize(
    "make, axes",
    [(on_adamw, P("x")), (lambda: apollo(0.05, R), P(None, "x"))],
)
def test_sharded_gradients_give_the_same(make, axes):
    """Layers or inputs over 4 devices; no more is asked of the user than `jax.jit`."""
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
    place = lambda tree: {
        "w": jax.device_put(tree["w"], NamedSharding(mesh, axes)),
        "b": jax.device_put(tree["b"], NamedSharding(mesh, P())),
    }
    one, _ = run(make(), 4)
    many, _ = run(make(), 4, place)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), one, many)
