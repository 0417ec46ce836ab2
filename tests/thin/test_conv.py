"""Convolutions and ragged expert products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from springroll.errors import InputError
from springroll.thin.transform import factored
from tests.thin.against_dense import (
    PAIRS,
    check,
    close,
    dense_numpy,
    equations,
    over_population,
    weight,
)


def rows(*shape, seed=9):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


CONVS = {
    "image": ((3, 3, 5, 7), "mmmn", ("NHWC", "HWIO", "NHWC"), (2, 6, 6, 5), {}),
    "channels first": (
        (4, 5, 3, 3), "nmmm", ("NCHW", "OIHW", "NCHW"), (2, 5, 6, 6),
        {"window_strides": (2, 1), "padding": "VALID"},
    ),
    "letters swapped": ((3, 3, 4, 5), "nnnm", ("NHWC", "HWIO", "NHWC"), (2, 6, 6, 4), {}),
    "sequence, dilated": (
        (3, 4, 5), "mmn", ("NWC", "WIO", "NWC"), (2, 9, 4),
        {"window_strides": (1,), "rhs_dilation": (2,)},
    ),
    "transposed": (
        (3, 4, 5), "mmn", ("NWC", "WIO", "NWC"), (2, 5, 4),
        {"window_strides": (1,), "lhs_dilation": (2,), "padding": [(2, 1)]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVS)
def test_conv(name):
    shape, roles, layout, x, options = CONVS[name]
    options = {"window_strides": (1, 1), "padding": "SAME", **options}
    conv = lambda w, x: lax.conv_general_dilated(x, w, dimension_numbers=layout, **options)
    check(conv, weight(0, shape, roles), rows(*x))


def test_a_wide_kernel_on_few_channels():
    """Patches of an image: too many taps to spread out, so the factor is the kernel itself."""
    conv = lambda w, x: lax.conv_general_dilated(
        x, w, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    check(conv, weight(0, (4, 4, 3, 7), "mmmn"), rows(2, 8, 8, 3))


def test_no_member_has_a_convolution_of_its_own():
    """Every convolution of a population has a kernel without a population axis, in one group."""
    shape, roles, layout, x, _ = CONVS["image"]
    conv = lambda w, x: lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=layout)
    whole, stacked, _ = over_population(conv, weight(0, shape, roles))
    found = [
        e
        for e in equations(jax.make_jaxpr(whole)(stacked, rows(*x)))
        if e.primitive.name == "conv_general_dilated"
    ]
    assert len(found) == 2
    for eqn in found:
        assert eqn.params["feature_group_count"] == eqn.params["batch_group_count"] == 1
        assert eqn.invars[1].aval.shape in (shape, (3, 3, 2 * 9, 2))


def test_conv_in_bfloat16_rounds_once():
    x = rows(1, 6, 4).astype(jnp.bfloat16)
    w = weight(0, (3, 4, 5), "mmn", dtype=jnp.bfloat16)
    conv = lambda w, x: lax.conv_general_dilated(
        x, w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )
    check(conv, w, x, tol=2e-2)


def test_depthwise_kernels_are_not_thin():
    w = weight(0, (3, 1, 16), "mmn")
    conv = lambda w, x: lax.conv_general_dilated(
        x, w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=16
    )
    with pytest.raises(InputError, match="conv_general_dilated"):
        factored(conv, densify_limit=0)(w, rows(2, 8, 16))


EXPERTS = weight(0, (3, 6, 8), "smn")
SIZES = jnp.array([2, 0, 3])


@pytest.mark.parametrize("roles", ["smn", "snm", "mmn", "mnn"])
def test_ragged_dot(roles):
    """JAX has no batched ragged_dot with shared weights; a population of thin members has."""
    check(lambda w, x: lax.ragged_dot(x, w, SIZES), weight(0, (3, 6, 8), roles), rows(5, 6))


def test_ragged_mixture_with_rows_left_over():
    def experts(p, x):
        hidden = jnp.tanh(lax.ragged_dot(x, p["up"], SIZES))
        return lax.ragged_dot(hidden, p["up"].swapaxes(1, 2), SIZES)

    check(experts, {"up": EXPERTS}, rows(7, 6))  # rows 5 and 6 belong to no expert


def test_ragged_dot_with_a_routing_of_its_own_per_member():
    def routed(w, x):
        expert = jnp.argmax(lax.ragged_dot(x, w, SIZES)[:, :3], axis=-1)
        order = jnp.argsort(expert)
        return lax.ragged_dot(x[order], w, jnp.bincount(expert, length=3))[jnp.argsort(order)]

    check(routed, EXPERTS, rows(5, 6))


def test_one_ragged_product_serves_all_members():
    x = rows(5, 6)
    dot = factored(lambda w, x: lax.ragged_dot(x, w, SIZES))
    members = jax.vmap(jax.vmap(dot, (None, 0)), (None, 0))
    many = jnp.stack([jnp.stack([x, -x])] * PAIRS)
    products = [
        e.invars[0].aval.shape
        for e in equations(jax.make_jaxpr(members)(EXPERTS, many))
        if e.primitive.name == "ragged_dot_general"
    ]
    assert products == [(PAIRS * 2 * 5, 6)]
    out = jax.jit(members)(EXPERTS, many)
    expected = lax.ragged_dot(x, dense_numpy(EXPERTS), SIZES)
    close(out[1, 0], expected, 1e-5)
    close(out[1, 1], -expected, 1e-5)


def test_ragged_gradients():
    x = rows(5, 6)
    thin = jax.grad(lambda w: jnp.sum(factored(lambda w: lax.ragged_dot(x, w, SIZES))(w) ** 2))
    dense = jax.grad(lambda w: jnp.sum(lax.ragged_dot(x, w.dense(), SIZES) ** 2))
    jax.tree.map(lambda a, b: close(a, b, 1e-5), jax.jit(thin)(EXPERTS), jax.jit(dense)(EXPERTS))
