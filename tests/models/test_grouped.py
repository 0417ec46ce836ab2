"""The grouped product: equal to ragged_dot and to one product per group, cheap, exact zeros."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import springroll as sr
from springroll.models.grouped import grouped_dot
from springroll.thin.factored_array import Factored
from springroll.thin.transform import factored
from tests.compiling import normal, quick_jit, temporary_bytes

SIZE, BLOCK_GROUP = 4, (0, 0, 2, 3, 3, 3)  # group 1 has no block
GROUPS, WIDTH, OUT = 4, 6, 5


def draw(dtype=jnp.float32):
    rows = SIZE * len(BLOCK_GROUP)
    x, w = normal(0, rows, WIDTH, dtype=dtype), normal(1, GROUPS, WIDTH, OUT, dtype=dtype)
    return x, w, jnp.array(BLOCK_GROUP, jnp.int32), normal(2, rows, OUT, dtype=dtype)


def by_ragged_dot(x, w, block_group):
    sizes = jnp.sum(block_group[:, None] == jnp.arange(GROUPS)[None], axis=0, dtype=jnp.int32)
    return jax.lax.ragged_dot(x, w, sizes * SIZE)


def by_group(x, w, block_group):
    return jnp.einsum("rk,rkn->rn", x, w[jnp.repeat(jnp.asarray(block_group), SIZE)])


@functools.partial(quick_jit, static_argnums=0)
def product_and_gradients(transposed, x, w, block_group, dy):
    w = w.swapaxes(1, 2) if transposed else w
    y, back = jax.vjp(lambda x, w: grouped_dot(x, w, block_group, transposed=transposed), x, w)
    dx, dw = back(dy)
    return y, dx, dw.swapaxes(1, 2) if transposed else dw


@pytest.mark.parametrize("transposed", [False, True])
def test_product_and_gradients_are_those_of_ragged_dot_and_of_rows(transposed):
    x, w, block_group, dy = draw()
    ours = product_and_gradients(transposed, x, w, block_group, dy)
    for other in (by_ragged_dot, by_group):

        @quick_jit
        def slow(x, w, dy, other=other):
            y, back = jax.vjp(lambda x, w: other(x, w, block_group), x, w)
            return y, *back(dy)

        for a, b in zip(ours, slow(x, w, dy), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_group_without_a_block_gets_exactly_no_gradient():
    x, w, block_group, dy = draw()
    dw = product_and_gradients(False, x, w, block_group, dy)[2]
    assert not np.any(dw[1])
    assert all(np.any(dw[g]) for g in (0, 2, 3))


def test_bfloat16_stays_and_its_gradient_is_summed_in_float32():
    x, w, block_group, dy = draw(jnp.bfloat16)
    y, dx, dw = product_and_gradients(True, x, w, block_group, dy)
    assert {y.dtype, dx.dtype, dw.dtype} == {jnp.dtype(jnp.bfloat16)}
    wide = [a.astype(jnp.float32) for a in (x, w)]
    exact = product_and_gradients(True, *wide, block_group, dy.astype(jnp.float32))[2]
    np.testing.assert_array_equal(dw, exact.astype(jnp.bfloat16))


def test_it_works_under_vmap_checkpoint_and_scan():
    x, w, block_group, _ = draw()
    many = quick_jit(jax.vmap(lambda x: grouped_dot(x, w, block_group)))(np.stack([x, 2 * x]))
    one = np.asarray(quick_jit(grouped_dot)(x, w, block_group))
    np.testing.assert_allclose(many, np.stack([one, 2 * one]), atol=1e-5)

    def layers(w_stack, x):
        step = lambda x, w: (
            x + grouped_dot(grouped_dot(x, w, block_group), w, block_group, transposed=True),
        )
        step = jax.checkpoint(step, prevent_cse=False)
        return jnp.sum(jax.lax.scan(lambda x, w: (*step(x, w), None), x, w_stack)[0])

    def unrolled(w_stack, x):
        for w in w_stack:
            x = x + by_group(by_group(x, w, BLOCK_GROUP), w.swapaxes(1, 2), BLOCK_GROUP)
        return jnp.sum(x)

    stack = jnp.stack([w, -w]) / 4
    gradients = lambda fn: quick_jit(jax.grad(fn, (0, 1)))(stack, x)
    for a, b in zip(gradients(layers), gradients(unrolled), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_thin_weight_is_two_more_grouped_products(transposed):
    x, w, block_group, dy = draw()
    left, right = normal(1, 2, GROUPS, WIDTH, 2) / 3
    right = right[:, :OUT]
    turn = (lambda w: w.swapaxes(1, 2)) if transposed else (lambda w: w)
    roles = "snm" if transposed else "smn"
    fn = functools.partial(grouped_dot, transposed=transposed)

    def thin(right):
        weight = sr.Factored(base=turn(w), left=left, right=right, roles=roles)
        return jnp.sum(dy * sr.factored(fn, densify_limit=0)(x, weight, block_group))

    def dense(right):
        weight = w + jnp.einsum("gkr,gnr->gkn", left, right)
        return jnp.sum(dy * grouped_dot(x, weight, block_group))

    learn = lambda fn: quick_jit(jax.value_and_grad(fn))(right)
    for a, b in zip(learn(thin), learn(dense), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_no_array_holds_a_weight_per_block_and_the_weight_buffer_is_updated_in_place():
    rows, size, groups, width, out = 1024, 16, 16, 64, 128
    shape = jax.ShapeDtypeStruct
    x = shape((rows, width), jnp.float32)
    w = shape((groups, width, out), jnp.float32)
    block_group = shape((rows // size,), jnp.int32)
    dy = shape((rows, out), jnp.float32)
    gradients = lambda x, w, g, dy: jax.vjp(lambda x, w: grouped_dot(x, w, g), x, w)[1](dy)
    compiled = jax.jit(gradients).lower(x, w, block_group, dy).compile()
    weight_bytes = groups * width * out * 4
    # A weight per block would be four times all weights; a second buffer would be once.
    assert temporary_bytes(compiled) < weight_bytes


@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_under_shard_map_with_its_checks(transposed):
    """Rows and their groups dealt out over 2 devices; weights on both."""
    x, w, block_group, dy = draw()
    w = w.swapaxes(1, 2) if transposed else w
    rows, whole = jax.P("d"), jax.P()
    share = functools.partial(
        jax.shard_map, mesh=jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    )

    def loss(x, w, block_group, dy):
        return jnp.sum(grouped_dot(x, w, block_group, transposed=transposed) * dy)

    gradients = jax.grad(loss, argnums=(0, 1))
    inside = share(gradients, in_specs=(rows, whole, rows, rows), out_specs=(rows, whole))
    losses = share(
        lambda *args: loss(*args)[None], in_specs=(rows, whole, rows, rows), out_specs=rows
    )
    outside = jax.grad(lambda *args: jnp.sum(losses(*args)), argnums=(0, 1))
    every = quick_jit(lambda *args: [fn(*args) for fn in (gradients, inside, outside)])
    expected, *found = every(x, w, block_group, dy)
    for pair in found:
        for a, b in zip(pair, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


def test_members_with_one_weight_are_multiplied_together():
    """Two rows of each of 3 pairs, with one row per block: the weight is gathered for nobody."""
    x, w = normal(0, 3, 2, 4, WIDTH), normal(1, GROUPS, OUT, WIDTH)
    block_group = jax.random.randint(jax.random.key(2), (3, 2, 4), 0, GROUPS, jnp.int32)
    product = jax.vmap(jax.vmap(lambda x, to: grouped_dot(x, w, to, transposed=True)))
    np.testing.assert_allclose(
        quick_jit(product)(x, block_group),
        jnp.einsum("abik,abink->abin", x, w[block_group]),
        atol=1e-5,
    )
    text = quick_jit(product).lower(x, block_group).as_text()
    assert f"tensor<{GROUPS}x{OUT}x{WIDTH}xf32>" in text
    assert not re.search(
        rf"tensor<[x\d]*\d{{2,}}x{OUT}x{WIDTH}xf32>|tensor<3x[x\d]*x{OUT}x{WIDTH}xf32>", text
    )


def test_members_with_their_own_factors_take_those_of_their_blocks():
    x, w = normal(0, 3, 8, WIDTH), normal(1, 3, GROUPS, WIDTH, 2)
    block_group = jax.random.randint(jax.random.key(2), (3, 4), 0, GROUPS, jnp.int32)
    expected = jnp.einsum(
        "aik,aikn->ain", x, jax.vmap(lambda w, to: w[to])(w, jnp.repeat(block_group, 2, axis=1))
    )
    np.testing.assert_allclose(
        quick_jit(jax.vmap(grouped_dot))(x, w, block_group), expected, atol=1e-5
    )


@pytest.mark.parametrize("roles", ["snm", "smn", "nnm"])
def test_a_thin_weight_of_either_orientation_stays_thin(roles):
    x, w = normal(0, 4, WIDTH), normal(1, GROUPS, OUT, WIDTH)
    sizes = {"m": "sm", "n": "sn"}
    factor = lambda key, side: normal(
        key, *(n for n, role in zip(w.shape, roles, strict=True) if role in sizes[side]), 2
    )
    thin = Factored(w, factor(2, "m"), factor(3, "n"), roles=roles)
    to = jnp.array([0, 2, 2, 3], jnp.int32)
    product = lambda w, x: grouped_dot(x, w, to, transposed=True)
    got = jax.jit(factored(product, densify_limit=0))(thin, x)
    np.testing.assert_allclose(got, product(thin.dense(), x), atol=1e-5)
