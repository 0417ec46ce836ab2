"""The thin term of a contraction: x times left @ right.T, without left @ right.T."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from springroll.factored.factored import (
    Factored,
    Lattice,
    cast,
    common_dtype,
    gain_of,
    scale_rank,
)

RANK = -1  # the label of the rank axis, always a factor's last
UNROLL = 8  # up to this many rank components are summed one by one, so that XLA fuses them


class Thin(NamedTuple):
    """Two factors with a label (an integer) per axis; equal labels mean the same axis."""

    left: Array
    left_labels: list[int]
    right: Array
    right_labels: list[int]
    gain: Any = None
    lattice: Lattice | None = None

    @classmethod
    def of(cls, w: Factored, labels: list[int]) -> Thin:
        """The thin term of `w`, given the labels of base's axes."""
        left = [*(labels[i] for i in w.axes("left")), RANK]
        right = [*(labels[i] for i in w.axes("right")), RANK]
        return cls(w.left, left, w.right, right, w.gain, w.lattice)


def thin_term(
    x: Array, x_labels: list[int], thin: Thin, out: list[int], *, dtype: Any, precision: Any = None
) -> Array:
    """einsum(x, thin -> out) in `dtype`.

    x meets first the factor with which it sums over more, so the intermediate has x's free axes
    and the rank; the gain is applied there. On a lattice the second factor must not be summed
    (see `stays_on_lattice`).
    """
    (first, f_labels), (second, s_labels) = _order(thin, x_labels, out)
    middle = [c for c in dict.fromkeys((*x_labels, *f_labels)) if c in out or c in s_labels]
    middle = [*(c for c in middle if c != RANK), RANK]
    if thin.lattice is not None:
        t = thin.lattice.met(_exact_sum(x, x_labels, first, f_labels, middle), thin.gain)
        meet = thin.lattice.product
        return _sum_components(t, middle, second, s_labels, out, lambda a, b, j: meet(a, b, dtype))
    t = contract(x, x_labels, first, f_labels, middle, dtype=dtype, precision=precision)
    t = scale_rank(t, thin.gain)
    return contract(t, middle, second, s_labels, out, dtype=dtype, precision=precision)


def product_term(thin: Thin, out: list[int], *, dtype: Any) -> Array:
    """left times right elementwise along shared labels (a lookup), in `dtype`."""
    if thin.lattice is not None:
        entry = thin.lattice.entry
        return _sum_components(
            *(thin.left, thin.left_labels, thin.right, thin.right_labels, out),
            lambda a, b, j: entry(a, b, gain_of(thin.gain, j), dtype),
        )
    left = scale_rank(cast(thin.left, dtype), thin.gain)
    return contract(left, thin.left_labels, thin.right, thin.right_labels, out, dtype=dtype)


def _exact_sum(x: Array, x_labels: list[int], f: Array, f_labels: list[int], out: list[int]) -> Array:
    """einsum(x, f -> out) of integers of at most 8 bits, exact.

    In float32 while no sum can reach 2^24, which a CPU does ten times faster than in int32.
    """
    sizes = dict(zip(x_labels, x.shape, strict=True))
    terms = math.prod(sizes[c] for c in x_labels if c in f_labels and c not in out)
    dtype = jnp.float32 if terms * 127**2 < 1 << 24 else jnp.int32
    summed = [c for c in x_labels if c in f_labels and c not in out]
    x, f = cast(x, dtype), cast(f, dtype)
    return _dot(x, x_labels, f, f_labels, out, summed, dtype, lax.Precision.HIGHEST)


def stays_on_lattice(x_labels: list[int], thin: Thin, out: list[int]) -> bool:
    """Whether every rank-one product appears by itself, so that it can be rounded by itself."""
    _, (_, s_labels) = _order(thin, x_labels, out)
    return all(c in out for c in s_labels if c != RANK)


def _order(thin: Thin, x_labels: list[int], out: list[int]) -> Any:
    """The two (factor, labels), the one that sums over more entries of x first."""
    summed = set(x_labels) - set(out)
    pairs = [(thin.left, thin.left_labels), (thin.right, thin.right_labels)]
    reach = [
        math.prod(size for c, size in zip(labels, f.shape, strict=True) if c in summed)
        for f, labels in pairs
    ]
    return pairs if reach[0] >= reach[1] else pairs[::-1]


def _sum_components(a, a_labels, b, b_labels, out, combine) -> Array:
    """The sum over rank components j of combine(a_j, b_j, j), both laid out as `out`."""
    i, k = a_labels.index(RANK), b_labels.index(RANK)
    rest_a, rest_b = [c for c in a_labels if c != RANK], [c for c in b_labels if c != RANK]
    total = None
    for j in range(a.shape[i]):
        x = spread(lax.index_in_dim(a, j, i, keepdims=False), rest_a, out)
        y = spread(lax.index_in_dim(b, j, k, keepdims=False), rest_b, out)
        part = combine(x, y, j)
        total = part if total is None else total + part
    assert total is not None, "a Factored has rank 0"
    return total


def contract(
    a: Array,
    a_labels: list[int],
    b: Array,
    b_labels: list[int],
    out: list[int],
    *,
    dtype: Any,
    precision: Any = None,
) -> Array:
    """einsum(a, b -> out) in `dtype`, for b a factor with labels that are in a or in out.

    Three ways to compute it, because XLA's batched dot of a tiny matrix (one per population
    member) is slow on a CPU and is never fused: a sum over few rank components is unrolled into
    multiply-adds that fuse with the base term; a single row is multiplied and summed; everything
    else is a dot_general.
    """
    summed = [c for c in a_labels if c in b_labels and c not in out]
    sizes = dict(zip((*a_labels, *b_labels), (*a.shape, *b.shape), strict=True))
    few = sizes.get(RANK, 1) <= UNROLL
    rows = math.prod(sizes[c] for c in a_labels if c not in b_labels)
    if summed == [RANK] and few:
        return _sum_ranks(a, a_labels, b, b_labels, out, dtype)
    if not summed or (rows == 1 and few):
        return _multiply_sum(a, a_labels, b, b_labels, out, summed, dtype)
    return _dot(a, a_labels, b, b_labels, out, summed, dtype, precision)


def _sum_ranks(a, a_labels, b, b_labels, out, dtype) -> Array:
    i, j = a_labels.index(RANK), b_labels.index(RANK)
    rest_a, rest_b = [c for c in a_labels if c != RANK], [c for c in b_labels if c != RANK]
    a, b = cast(a, dtype), cast(b, dtype)
    total = None
    for k in range(a.shape[i]):
        x = lax.index_in_dim(a, k, i, keepdims=False)
        y = lax.index_in_dim(b, k, j, keepdims=False)
        part = _multiply(x, rest_a, y, rest_b, out)
        total = part if total is None else total + part
    assert total is not None, "a Factored has rank 0"
    return total


def _multiply_sum(a, a_labels, b, b_labels, out, summed, dtype) -> Array:
    full = [*out, *summed]
    both = _multiply(cast(a, dtype), a_labels, cast(b, dtype), b_labels, full)
    return jnp.sum(both, axis=tuple(range(len(out), len(full))), dtype=dtype) if summed else both


def _multiply(a, a_labels, b, b_labels, out) -> Array:
    sizes = dict(zip((*a_labels, *b_labels), (*a.shape, *b.shape), strict=True))
    shape = tuple(sizes[c] for c in out)
    return lax.mul(spread(a, a_labels, out, shape), spread(b, b_labels, out, shape))


def _dot(a, a_labels, b, b_labels, out, summed, dtype, precision) -> Array:
    a, b = _same_dtype(a, b)
    batch = [c for c in a_labels if c in b_labels and c in out]
    where = lambda labels, wanted: [labels.index(c) for c in wanted]
    dims = (
        (where(a_labels, summed), where(b_labels, summed)),
        (where(a_labels, batch), where(b_labels, batch)),
    )
    result = lax.dot_general(a, b, dims, precision=precision, preferred_element_type=dtype)
    made = [*batch, *(c for c in (*a_labels, *b_labels) if c not in batch and c not in summed)]
    return lax.transpose(result, where(made, out)) if made != out else result


def _same_dtype(a: Array, b: Array) -> tuple[Array, Array]:
    """The activation is the big operand, so the factor takes its type if that loses nothing big."""
    if a.dtype == b.dtype:
        return a, b
    if jnp.issubdtype(a.dtype, jnp.floating):
        return a, cast(b, a.dtype)
    if jnp.issubdtype(b.dtype, jnp.floating):
        return cast(a, b.dtype), b
    wider = common_dtype(a, b)
    return cast(a, wider), cast(b, wider)


def spread(a: Array, labels: list[int], out: list[int], shape: Any = None) -> Array:
    """Lay the axes of `a` out as `out`; axes that it lacks have size 1, or that of `shape`."""
    order = sorted(range(len(labels)), key=lambda i: out.index(labels[i]))
    a = lax.transpose(a, order) if order != list(range(len(labels))) else a
    dims = [out.index(labels[i]) for i in order]
    sizes = [1] * len(out) if shape is None else list(shape)
    for d, size in zip(dims, a.shape, strict=True):
        sizes[d] = size
    return lax.broadcast_in_dim(a, sizes, dims)
