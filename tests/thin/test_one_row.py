"""One row per member, as in decoding: what meets a thin weight is made once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.thin.factored_array import Factored
from springroll.thin.transform import factored


def weight(key, rank, shape=(6, 5)):
    keys = jax.random.split(key, 3)
    base = jax.random.normal(keys[0], shape)
    left, right = (jax.random.normal(k, (n, rank)) for k, n in zip(keys[1:], shape, strict=True))
    return Factored(base, left, right, jnp.float32(0.3))


def two_products(params, x):
    """Both products meet the same made-up activation."""
    y = jnp.tanh(x) * jnp.float32(2)
    return y @ params["a"].T, y @ params["b"].T


@pytest.mark.parametrize("rank", [1, pytest.param(2, marks=pytest.mark.slow), 9])
@pytest.mark.parametrize("rows", [1, 7, 8])
def test_products_are_those_of_the_formed_weight(rank, rows):
    params = {"a": weight(jax.random.key(1), rank), "b": weight(jax.random.key(2), rank)}
    formed = {name: w.dense() for name, w in params.items()}
    x = jax.random.normal(jax.random.key(3), (rows, 5))
    got = jax.jit(factored(two_products))(params, x)
    for ours, expected in zip(got, two_products(formed, x), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("rows, barriers", [(1, 1), (7, 1), (8, 0)])
def test_few_rows_are_written_once_for_all_products(rows, barriers):
    params = {"a": weight(jax.random.key(1), 1), "b": weight(jax.random.key(2), 1)}
    jaxpr = jax.make_jaxpr(factored(two_products))(params, jnp.ones((rows, 5)))
    names = [eqn.primitive.name for eqn in jaxpr.eqns]
    assert names.count("optimization_barrier") == barriers


def test_the_gradient_passes():
    params = {"a": weight(jax.random.key(1), 1), "b": weight(jax.random.key(2), 1)}
    formed = {name: w.dense() for name, w in params.items()}
    total = lambda fn, params: lambda x: sum(jnp.sum(y**2) for y in fn(params, x))
    x = jnp.ones((1, 5))
    ours = jax.grad(total(factored(two_products), params))(x)
    np.testing.assert_allclose(ours, jax.grad(total(two_products, formed))(x), rtol=1e-4)
