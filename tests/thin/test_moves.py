"""Primitives that move, cast, scale or join weights keep them thin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from springroll.thin.rules.shape import reshape_groups
from tests.thin.against_dense import check, dense_numpy, weight


def rows(*shape, seed=9):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


W = weight(0, (6, 8), "mn")
STACK = weight(1, (3, 6, 8), "smn")
X = rows(5, 6)

MOVES = {
    "transpose": (lambda w, x: x @ w.T.T, W),
    "transpose of a stack": (
        lambda w, x: jnp.einsum("bi,jei->ebj", x, w.transpose(2, 0, 1)),
        STACK,
    ),
    "merge heads": (lambda w, x: x @ w.reshape(6, 8), weight(2, (6, 2, 4), "mnn")),
    "split heads": (lambda w, x: jnp.einsum("bi,ihk->bhk", x, w.reshape(6, 4, 2)), W),
    "merge the summed axes": (lambda w, x: x @ w.reshape(6, 8), weight(2, (2, 3, 8), "mmn")),
    "reshape with ones": (lambda w, x: x @ w.reshape(1, 6, 1, 8, 1)[0, :, 0, :, 0], W),
    "squeeze and expand": (lambda w, x: x @ jnp.squeeze(jnp.expand_dims(w, (0, 2)), (0, 2)), W),
    "slice": (lambda w, x: x[:, 1:5:2] @ w[1:5:2, ::3], W),
    "a layer of a stack": (lambda w, x: jnp.tanh(x @ w[0]) @ w[2].T, STACK),
    "the last layer": (lambda w, x: x @ w[-1], STACK),
    "dynamic layer": (lambda w, x: x @ lax.dynamic_index_in_dim(w, 1, keepdims=False), STACK),
    "dynamic slice": (lambda w, x: x[:, :4] @ lax.dynamic_slice(w, (1, 2), (4, 5)), W),
    "split": (lambda w, x: sum(jnp.sin(x @ p) for p in jnp.split(w, 2, axis=1)), W),
    "split of the summed axis": (lambda w, x: x[:, :2] @ jnp.split(w, [2], axis=0)[0], W),
    "unpacked layers": (lambda w, x: sum(jnp.sin(x @ layer) for layer in w), STACK),
    "tile": (lambda w, x: x @ jnp.tile(w, (1, 3)), W),
    "repeat": (lambda w, x: x @ jnp.repeat(w, 2, axis=1), W),
    "reverse": (lambda w, x: x @ w[::-1, ::-1], W),
    "pad": (lambda w, x: x @ jnp.pad(w, ((0, 0), (1, 2)), constant_values=3.0), W),
    "pad the summed axis": (
        lambda w, x: jnp.pad(x, ((0, 0), (0, 1))) @ jnp.pad(w, ((0, 1), (0, 0))),
        W,
    ),
    "broadcast": (
        lambda w, x: jnp.matmul(x[None], jnp.broadcast_to(w, (4, 6, 8))),
        W,
    ),
    "sum of an axis": (lambda w, x: x @ w + w.sum(0, keepdims=True) - w.sum(1).sum(), W),
    "negate": (lambda w, x: x @ -w, W),
    "scalars": (lambda w, x: x @ (2.0 * w / 3.0 - 1.0 + (0.5 - w) + (w + 1)), W),
    "output scale": (lambda w, x: x @ (w * (1 + jnp.arange(8.0))[None]), W),
    "input scale": (lambda w, x: x @ (w / (1 + jnp.arange(6.0))[:, None]), W),
    "both scales": (lambda w, x: x @ (jnp.arange(8.0)[None] * (w * jnp.arange(6.0)[:, None])), W),
    "a scale made by a broadcast": (
        lambda w, x: x @ (w * lax.broadcast_in_dim(jnp.arange(8.0), (6, 8), (1,))),
        W,
    ),
    "layer scale": (
        lambda w, x: jnp.einsum("bi,eij->ebj", x, w * jnp.arange(3.0)[:, None, None]),
        STACK,
    ),
    "add a plain matrix": (lambda w, x: x @ (w + jnp.ones((6, 8)) - jnp.eye(6, 8)), W),
    "plain minus weight": (lambda w, x: x @ (jnp.ones((6, 8)) - w), W),
    "stop_gradient": (lambda w, x: x @ lax.stop_gradient(w), W),
    "optimization_barrier": (lambda w, x: x @ lax.optimization_barrier(w), W),
    "reduce_precision": (lambda w, x: x @ lax.reduce_precision(w, 8, 23), W),
    "checkpoint_name": (lambda w, x: x @ checkpoint_name(w, "w"), W),
    "positions added to a batch": (lambda w, x: jnp.tanh(w[None, :5] + rows(2, 5, 8)), W),
    "a bias of heads": (lambda w, x: rows(2, 5, 6, 8) * w[None, None] - w[None, None], W),
    "a batch divided by positions": (lambda w, x: rows(2, 6, 8) / w[None], W),
}


@pytest.mark.parametrize("name", MOVES)
def test_move(name):
    fn, w = MOVES[name]
    check(fn, w, X, tol=1e-4, may_form=w is W and ("positions" in name or "bias" in name))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_cast_down_and_multiply(dtype):
    check(lambda w, x: x.astype(dtype) @ w.astype(dtype), W, X, tol=3e-2)


def test_cast_up():
    w = weight(0, (6, 8), "mn", dtype=jnp.bfloat16)
    check(lambda w, x: x @ w.astype(jnp.float32), w, X, tol=2e-2)


def test_weight_only_int8_with_scales_per_channel():
    """int8 storage, a float scale per output: the base is dequantised once for all members."""
    rng = np.random.default_rng(0)
    base = jnp.asarray(rng.integers(-127, 128, (6, 8)), jnp.int8)
    scale = jnp.asarray(rng.uniform(0.01, 0.1, 8), jnp.float32)
    w = weight(0, (6, 8), "mn", gain=None)
    w = w.map(lambda a, axes: base if len(axes) == 2 else jnp.round(a * 4).astype(jnp.int8))

    def fn(p, x):
        return x @ (p["q"].astype(jnp.float32) * p["scale"][None])

    wide = lambda w: dense_numpy(w.map(lambda a, _: a.astype(jnp.int32)))
    check(fn, {"q": w, "scale": scale}, X, dense=wide)


A, B = weight(3, (6, 9), "mn", rank=1), weight(4, (6, 7), "mn", rank=3, gain=(0.1, 0.2, 0.3))
OTHER = weight(5, (6, 8), "nm", rank=1, gain=None)

JOINS = {
    "fused along outputs": (lambda p, x: x @ jnp.concatenate(p, 1), (A, B, A)),
    "with a plain matrix between": (lambda p, x: x @ jnp.concatenate(p, 1), (A, rows(6, 2), B)),
    "letters swapped": (lambda p, x: x @ jnp.concatenate(p, 1), (A, OTHER)),
    "along inputs": (
        lambda p, x: jnp.concatenate([x, x], 1) @ jnp.concatenate(p, 0),
        (weight(3, (3, 8), "mn"), rows(3, 8), weight(4, (6, 8), "mn", gain=None)),
    ),
    "along a stack": (
        lambda p, x: jnp.einsum("bi,eij->ebj", x, jnp.concatenate(p, 0)),
        (STACK, rows(2, 6, 8), weight(6, (1, 6, 8), "smn", rank=1)),
    ),
    "stacked one by one": (lambda p, x: jnp.einsum("bi,eij->ebj", x, jnp.stack(p)), (W, OTHER, W)),
    "stacked with a plain one": (
        lambda p, x: jnp.einsum("bi,eij->ebj", x, jnp.stack([*p, x[:1].T * jnp.ones(8)[None]])),
        (W, OTHER),
    ),
    "sum": (lambda p, x: x @ (p[0] + p[1]), (W, OTHER)),
    "difference": (lambda p, x: x @ (p[0] - p[1]), (W, OTHER)),
    "fused then split": (
        lambda p, x: [x @ part for part in jnp.split(jnp.concatenate(p, 1), [9], 1)],
        (A, B),
    ),
}


@pytest.mark.parametrize("name", JOINS)
def test_join(name):
    fn, params = JOINS[name]
    check(fn, params, X)


LOOKUPS = {
    "rows": lambda w, i: w[i],
    "a table of ids": lambda w, i: w[i.reshape(2, 2)],
    "columns": lambda w, i: jnp.take(w, i, axis=1),
    "columns of rows": lambda w, i: jnp.take(w[1:5], i, axis=1),
    "out of bounds is filled": lambda w, i: w.at[i * 3].get(mode="fill", fill_value=-5.0),
    "out of bounds is clipped": lambda w, i: w.at[i * 3].get(mode="clip"),
    "single entries": lambda w, i: w[i, i + 1],
    "windows": lambda w, i: jax.vmap(lambda j: lax.dynamic_slice(w, (j, j), (2, 3)))(i),
    "along an axis": lambda w, i: jnp.take_along_axis(w, jnp.stack([i, i + 1, i + 2] * 2), 1),
    "one row": lambda w, i: jnp.tanh(w[i[0]]),
    "one row of a table, then a product": lambda w, i: jnp.tanh(w[i[0]]) @ w.T,
    "one row at a time": lambda w, i: jax.vmap(lambda j: w[j])(i),
    "rows of a slice": lambda w, i: w[:, 2:7][i],
    "scaled rows": lambda w, i: (w * 3.0)[i] / 2.0,
}


@pytest.mark.parametrize("name", LOOKUPS)
def test_lookup(name):
    check(LOOKUPS[name], W, jnp.array([2, 0, 5, 2]))


def test_lookup_in_a_batch_of_tables():
    ids = jnp.array([[0, 5], [2, 2], [4, 1]])
    check(lambda w, ids: jax.vmap(lambda t, i: t[i])(w, ids), STACK, ids)


def test_one_matrix_of_a_stack_by_a_traced_index():
    check(lambda w, x, i: x @ jnp.take(w, i, axis=0), STACK, X, jnp.int32(2))


def test_lookup_with_a_thin_rank_axis_on_either_side():
    check(lambda w, i: w[i], weight(0, (6, 8), "nm", rank=3), jnp.array([1, 1, 4]))


@pytest.mark.parametrize(
    ("old", "new", "groups"),
    [
        ((6, 4), (2, 3, 4), [((0,), (0, 1)), ((1,), (2,))]),
        ((2, 3, 4), (6, 4), [((0, 1), (0,)), ((2,), (1,))]),
        ((4, 6), (6, 4), [((0, 1), (0, 1))]),
        ((), (1, 1), [((), (0, 1))]),
    ],
)
def test_reshape_groups(old, new, groups):
    assert reshape_groups(old, new) == groups


def test_reshape_groups_cover_every_axis_once():
    for old, new in [
        ((1, 6, 1, 4, 1), (2, 1, 3, 4)),
        ((3, 1), (1, 3, 1)),
        ((1,), ()),
        ((8,), (2, 4)),
    ]:
        groups = reshape_groups(old, new)
        assert sorted(i for olds, _ in groups for i in olds) == list(range(len(old)))
        assert sorted(j for _, news in groups for j in news) == list(range(len(new)))
        for olds, news in groups:
            assert np.prod([old[i] for i in olds]) == np.prod([new[j] for j in news])
