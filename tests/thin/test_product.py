"""A function marked as a product is called again on the factors, whatever it is inside."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from springroll.thin.custom_product import product
from springroll.thin.discovery import discover
from springroll.thin.factored_array import Factored
from springroll.thin.transform import factored
from tests.thin.against_dense import check, equations, weight

GROUPS = jnp.array([0, 0, 2, 3])
X = jnp.asarray(np.random.default_rng(0).normal(size=(8, 5)), jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _blocks(x, w, group, transposed):
    w = jnp.swapaxes(w, 1, 2) if transposed else w
    blocks = x.reshape(len(group), -1, x.shape[-1])
    return lax.map(lambda bg: bg[0] @ w[bg[1]], (blocks, group)).reshape(x.shape[0], -1)


def _forward(x, w, group, transposed):
    return _blocks(x, w, group, transposed), (x, w, group)


def _backward(transposed, saved, dy):
    x, w, group = saved
    dx = _blocks(dy, w, group, not transposed)
    rows = jnp.repeat(jax.nn.one_hot(group, w.shape[0]), x.shape[0] // len(group), axis=0)
    dw = jnp.einsum("re,ri,ro->eio", rows, x, dy)
    return dx, jnp.swapaxes(dw, 1, 2) if transposed else dw, None


_blocks.defvjp(_forward, _backward)


@product(lambda transposed=False: "snm" if transposed else "smn")
def grouped(x, w, group, transposed=False) -> jax.Array:
    return _blocks(x, w, group, transposed)


def test_a_kernel_is_called_for_base_and_both_factors():
    check(lambda w, x: grouped(x, w, GROUPS), weight(1, (4, 5, 6), "smn"), X)
    check(lambda w, x: grouped(x, w, GROUPS, transposed=True), weight(1, (4, 6, 5), "snm"), X)


def test_groups_that_share_a_factor_meet_it_in_one_plain_product():
    check(lambda w, x: grouped(x, w, GROUPS), weight(2, (4, 5, 6), "nmn"), X)
    check(lambda w, x: grouped(x, w, GROUPS), weight(2, (4, 5, 6), "mmn"), X)
    w = weight(3, (4, 6, 5), "nnm", rank=3)
    run = factored(lambda w, x: grouped(x, w, GROUPS, transposed=True), densify_limit=0)
    outer = [e.primitive.name for e in jax.make_jaxpr(run)(w, X).eqns]
    assert outer.count("dot_general") == 1 and outer.count("jit") == 2


def test_a_product_without_groups():
    kernel = product("nm")(lambda x, w: x @ w.T)
    check(lambda w, x: kernel(x, w), weight(4, (6, 5), "nm"), X)


@pytest.mark.parametrize("roles", ["snm", "nnm"])
def test_gradients_of_the_factors_equal_those_of_the_dense_weight(roles):
    w = weight(5, (4, 6, 5), roles, rank=3, gain=None)

    def loss(left, right, fn):
        thin = Factored(w.base, left, right, None, roles)
        return jnp.sum(jnp.sin(fn(thin)))

    call = lambda w, x: grouped(x, w, GROUPS, transposed=True)
    ours = jax.grad(loss, (0, 1))(w.left, w.right, lambda w: factored(call)(w, X))
    dense = jax.grad(loss, (0, 1))(w.left, w.right, lambda w: call(w.dense(), X))
    for a, b in zip(ours, dense, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_a_group_without_rows_gets_exactly_no_gradient():
    w = weight(6, (4, 6, 5), "snm", gain=None)
    call = factored(lambda w, x: jnp.sum(grouped(x, w, GROUPS, transposed=True) ** 2))
    grad = jax.grad(lambda r: call(Factored(w.base, w.left, r, None, "snm"), X))(w.right)
    assert not np.any(grad[1]) and np.all(np.any(grad[jnp.array([0, 2, 3])], axis=(1, 2)))


def test_weights_that_share_a_factor_meet_the_activation_once():
    a, b = weight(7, (4, 6, 5), "snm", rank=9), weight(8, (4, 6, 5), "snm", rank=9)

    def fn(a, b, x):
        return grouped(x, a, GROUPS, transposed=True) + grouped(x, b, GROUPS, transposed=True)

    def share(a, b, x):
        return factored(fn)(a, dataclasses.replace(b, left=a.left), x)

    calls = [e for e in equations(jax.make_jaxpr(share)(a, b, X)) if e.primitive.name == "jit"]
    assert sum("grouped" in e.params["name"] for e in calls) == 5  # 2 bases, 1 left, 2 rights


def test_discover_reads_the_mark():
    def moe(p, x):
        def layer(x, w):
            gate, up = (grouped(x, w[k], GROUPS, transposed=True) for k in ("gate", "up"))
            return x + grouped(jax.nn.silu(gate) * up, w["down"], GROUPS, transposed=True), None

        return lax.scan(layer, x, p)[0]

    shapes = {"gate": (2, 4, 6, 5), "up": (2, 4, 6, 5), "down": (2, 4, 5, 6)}
    params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
    roles = discover(moe, params, X)
    assert {leaf.roles for leaf in roles.values()} == {"ssnm"}
    assert roles["gate"].meets == roles["up"].meets != roles["down"].meets
    assert roles["gate"].dealt == roles["up"].dealt == (1,)  # rows of one activation
    assert roles["down"].dealt == ()  # rows that the experts made themselves


def test_a_mark_that_is_no_product():
    with pytest.raises(ValueError, match="one m, one n and s"):
        product("mm")(lambda x, w: x @ w)(X, X)
