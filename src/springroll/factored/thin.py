"""The thin term of a contraction: x times left @ right.T, without left @ right.T."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from springroll.factored.factored import Factored, scale_rank

RANK = -1  # the label of the rank axis
UNROLL = 4  # up to this many rank components are summed one by one, fused by XLA


def thin_term(
    x: Array,
    x_labels: list[int],
    w: Factored,
    w_labels: list[int],
    out: list[int],
    *,
    dtype: Any,
    precision: Any = None,
) -> Array | None:
    """The einsum of x and w's thin term, in `dtype`; labels are integers, equal means same axis.

    x meets first the factor with which it sums over more, so the intermediate is x's free axes
    times the rank; the gain is applied there. None when a lattice rule cannot stay exact, because
    the second factor would be summed as well.
    """
    left = [*(w_labels[i] for i in w.axes("left")), RANK]
    right = [*(w_labels[i] for i in w.axes("right")), RANK]
    summed = set(x_labels) - set(out)
    size = dict(zip(w_labels, w.shape, strict=True))
    reach = [math.prod(size[c] for c in f if c in summed) for f in (left, right)]
    pairs = [(w.left, left), (w.right, right)]
    (first, f_labels), (second, s_labels) = pairs if reach[0] >= reach[1] else pairs[::-1]
    middle = [c for c in dict.fromkeys((*x_labels, *f_labels)) if c in out or c in s_labels]
    middle = [*(c for c in middle if c != RANK), RANK]
    if w.lattice is not None and any(c in summed for c in s_labels):
        return None
    t = contract(x, x_labels, first, f_labels, middle, dtype=dtype, precision=precision)
    t = scale_rank(t, w.gain)
    if w.lattice is None:
        return contract(t, middle, second, s_labels, out, dtype=dtype, precision=precision)
    parts = [
        w.lattice.product(
            spread(t[..., j], middle[:-1], out), spread(second[..., j], s_labels[:-1], out), dtype
        )
        for j in range(w.rank)
    ]
    return sum(parts[1:], parts[0])


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
    """einsum(a, b -> out) in `dtype`; sums of few terms or few rows are left to XLA's fusion."""
    summed = [c for c in a_labels if c in b_labels and c not in out]
    sizes = dict(zip((*a_labels, *b_labels), (*a.shape, *b.shape), strict=True))
    rows = math.prod(sizes[c] for c in a_labels if c not in b_labels)
    if summed == [RANK] and sizes[RANK] <= UNROLL:
        return _sum_ranks(a, a_labels, b, b_labels, out, dtype)
    if not summed or (rows == 1 and sizes.get(RANK, 1) <= UNROLL):
        return _multiply_sum(a, a_labels, b, b_labels, out, dtype)
    return _dot(a, a_labels, b, b_labels, out, dtype, precision)


def _sum_ranks(a, a_labels, b, b_labels, out, dtype) -> Array:
    i, j = a_labels.index(RANK), b_labels.index(RANK)
    rest_a, rest_b = [c for c in a_labels if c != RANK], [c for c in b_labels if c != RANK]
    total = None
    for k in range(a.shape[i]):
        part = lax.mul(
            spread(
                _cast(lax.index_in_dim(a, k, i, keepdims=False), dtype), rest_a, out, b, b_labels
            ),
            spread(
                _cast(lax.index_in_dim(b, k, j, keepdims=False), dtype), rest_b, out, a, a_labels
            ),
        )
        total = part if total is None else total + part
    return total


def _multiply_sum(a, a_labels, b, b_labels, out, dtype) -> Array:
    summed = [c for c in a_labels if c in b_labels and c not in out]
    full = [*out, *summed]
    product = lax.mul(
        spread(_cast(a, dtype), a_labels, full, b, b_labels),
        spread(_cast(b, dtype), b_labels, full, a, a_labels),
    )
    return jnp.sum(product, axis=tuple(range(len(out), len(full))), dtype=dtype)


def _dot(a, a_labels, b, b_labels, out, dtype, precision) -> Array:
    if a.dtype != b.dtype:
        # The activation is the big operand: the factor takes its type, unless that is an integer.
        to = a.dtype if jnp.issubdtype(a.dtype, jnp.floating) else b.dtype
        a, b = _cast(a, to), _cast(b, to)
    batch = [c for c in a_labels if c in b_labels and c in out]
    summed = [c for c in a_labels if c in b_labels and c not in out]
    where = lambda labels, wanted: [labels.index(c) for c in wanted]
    dims = (
        (where(a_labels, summed), where(b_labels, summed)),
        (where(a_labels, batch), where(b_labels, batch)),
    )
    result = lax.dot_general(a, b, dims, precision=precision, preferred_element_type=dtype)
    taken = {*batch, *summed}
    made = [*batch, *(c for c in (*a_labels, *b_labels) if c not in taken)]
    return lax.transpose(result, where(made, out)) if made != out else result


def spread(
    a: Array, labels: list[int], out: list[int], other: Any = None, other_labels: Any = None
) -> Array:
    """Lay the axes of `a` out as `out`; axes it lacks get size 1, or `other`'s size if given."""
    order = sorted(range(len(labels)), key=lambda i: out.index(labels[i]))
    a = lax.transpose(a, order) if order != list(range(len(labels))) else a
    dims = [out.index(labels[i]) for i in order]
    shape = [1] * len(out)
    for d, size in zip(dims, a.shape, strict=True):
        shape[d] = size
    if other is not None:
        for c, size in zip(other_labels, other.shape, strict=True):
            if c in out:
                shape[out.index(c)] = size
    return lax.broadcast_in_dim(a, shape, dims)


def _cast(x: Array, dtype: Any) -> Array:
    return x if x.dtype == jnp.dtype(dtype) else lax.convert_element_type(x, dtype)
