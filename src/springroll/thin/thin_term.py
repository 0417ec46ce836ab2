"""The thin term of a contraction: x times left @ right.T, without left @ right.T."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from springroll.thin.factored_array import (
    Factored,
    Gain,
    Lattice,
    cast,
    common_dtype,
    common_type,
    gain_of,
    is_tiny,
    scale_rank,
    whole_bytes,
)
from springroll.thin.walk import Memo

RANK = -1  # the label of the rank axis, always a factor's last
UNROLL = 8  # up to this many rank components are added one by one, which XLA fuses
FEW_ROWS = 8  # below it, a single component is met as a matrix of one column


class Options(TypedDict):
    """The keywords of a contraction: the dtype of its result, and as in `lax.dot_general`."""

    dtype: DTypeLike
    precision: lax.PrecisionLike


class Thin(NamedTuple):
    """Two factors with a label (an integer) per axis; equal labels mean the same axis."""

    left: Array
    left_labels: list[int]
    right: Array
    right_labels: list[int]
    gain: Gain = None
    lattice: Lattice | None = None
    dtype: np.dtype | None = None  # of the weight; None: not narrower than what meets it

    @classmethod
    def of(cls, w: Factored, labels: list[int]) -> Thin:
        """The thin term of `w`, given the labels of base's axes."""
        left = [*(labels[i] for i in w.axes("left")), RANK]
        right = [*(labels[i] for i in w.axes("right")), RANK]
        return cls(w.left, left, w.right, right, w.gain, w.lattice, w.dtype)


def thin_term(
    x: Array,
    x_labels: list[int],
    thin: Thin,
    out: list[int],
    *,
    dtype: DTypeLike,
    precision: lax.PrecisionLike = None,
    memo: Memo | None = None,
) -> Array:
    """einsum(x, thin -> out) in `dtype`.

    `memo` remembers products of an activation with a factor, for other weights that meet the same
    two: x P is computed, kept for the gradient and differentiated once for q, k and v.

    x meets the factors in the type in which it meets the weight: that which holds both. So a thin
    term is as exact as the product with the formed weight, and complex where that is.

    x meets first the factor with which it sums over more, so the intermediate has x's free axes
    and the rank; the gain is applied there. On a lattice the second factor must not be summed
    (see `stays_on_lattice`).

    Few components are multiplied and added one by one: XLA fuses that with the base term, and on
    a CPU a batched product with one column is up to ten times faster than with a few. With one row
    and one component the rank axis stays on the factor, which then need not be copied first.
    """
    (first, f_labels), (second, s_labels) = _order(thin, x_labels, out)
    middle = [c for c in dict.fromkeys((*x_labels, *f_labels)) if c in out or c in s_labels]
    middle = [c for c in middle if c != RANK]
    options: Options = {"dtype": dtype, "precision": precision}
    if thin.lattice is not None:
        exact = _exact_dtype(x, x_labels, middle)
        options = {"dtype": exact, "precision": lax.Precision.HIGHEST}
        x, first = cast(x, options["dtype"]), cast(first, options["dtype"])
    elif thin.dtype is not None:
        x = _promoted(x, thin.dtype, memo)
    rank = first.shape[-1]
    rows = math.prod(n for c, n in zip(x_labels, x.shape, strict=True) if c not in f_labels)
    if rank > 1 or rows < FEW_ROWS:
        t = _once(memo, x, x_labels, first, f_labels, [*middle, RANK], options)
        if rank > UNROLL and thin.lattice is None:
            t = scale_rank(t, thin.gain)
            return contract(t, [*middle, RANK], second, s_labels, out, **options)
        ts = _components(t)
    else:
        column = lambda part: contract(x, x_labels, part, f_labels[:-1], middle, **options)
        ts = [column(part) for part in _components(first)]
    gains = [gain_of(thin.gain, j) for j in range(rank)]
    met = scale_rank if thin.lattice is None else thin.lattice.met
    ts = [met(t, gain) for t, gain in zip(ts, gains, strict=True)]
    product = _multiply if thin.lattice is None else thin.lattice.product
    if any(c not in out for c in s_labels[:-1]):  # the second factor is summed as well
        parts = [
            contract(t, middle, part, s_labels[:-1], out, **options)
            for t, part in zip(ts, _components(second), strict=True)
        ]
    else:
        parts = [
            product(spread(t, middle, out), spread(part, s_labels[:-1], out), dtype)
            for t, part in zip(ts, _components(second), strict=True)
        ]
    return sum(parts[1:], parts[0])


def _promoted(x: Array, dtype: np.dtype, memo: Memo | None) -> Array:
    """x in the type that holds both it and a weight of `dtype`."""
    wanted = common_type(x.dtype, dtype)
    if x.dtype == wanted or memo is None:
        return cast(x, wanted)
    return memo.once(lambda: cast(x, wanted), (x,), "promoted", wanted)


def _once(
    memo: Memo | None,
    x: Array,
    x_labels: list[int],
    factor: Array,
    f_labels: list[int],
    out: list[int],
    options: Options,
) -> Array:
    """contract(x, factor), or the result of the same call from `memo`."""
    compute = lambda: contract(x, x_labels, factor, f_labels, out, **options)
    if memo is None:
        return compute()
    number = {c: i for i, c in enumerate(dict.fromkeys((*x_labels, *f_labels)))}
    spec = tuple(tuple(number[c] for c in labels) for labels in (x_labels, f_labels, out))
    return memo.once(compute, (x, factor), spec, options["dtype"], options["precision"])


def product_term(thin: Thin, out: list[int], *, dtype: DTypeLike) -> Array:
    """left times right elementwise along shared labels (a lookup), in `dtype`."""
    parts = []
    for j in range(thin.left.shape[-1]):
        left = spread(_component(thin.left, j), thin.left_labels[:-1], out)
        right = spread(_component(thin.right, j), thin.right_labels[:-1], out)
        gain = gain_of(thin.gain, j)
        if thin.lattice is None:
            parts.append(_multiply(scale_rank(cast(left, dtype), gain), right, dtype))
        else:
            parts.append(thin.lattice.entry(left, right, gain, dtype))
    return sum(parts[1:], parts[0])


def _component(factor: Array, j: int) -> Array:
    return lax.index_in_dim(factor, j, -1, keepdims=False)


def _components(factor: Array) -> list[Array]:
    """The slices of a factor along its last axis, the rank."""
    return [_component(factor, j) for j in range(factor.shape[-1])]


def _multiply(a: Array, b: Array, dtype: DTypeLike) -> Array:
    """a * b in `dtype`, sizes of 1 spread."""
    shape = jnp.broadcast_shapes(a.shape, b.shape)
    wide = lambda v: jnp.broadcast_to(cast(v, dtype), shape)
    return lax.mul(wide(a), wide(b))


def _exact_dtype(x: Array, x_labels: list[int], middle: list[int]) -> np.dtype:
    """The type in which x . factor is exact on a lattice, for factors of at most 8 bits.

    float32 for float registers, and for int8 while no sum can exceed 2^24, since a CPU multiplies
    floats faster; int32 otherwise.
    """
    terms = math.prod(n for c, n in zip(x_labels, x.shape, strict=True) if c not in middle)
    small = x.dtype.itemsize == 1 and terms * 2**14 <= 2**24
    floats = jnp.issubdtype(x.dtype, jnp.floating)
    return jnp.dtype(jnp.float32 if floats or small else jnp.int32)


def stays_on_lattice(x: Array, x_labels: list[int], thin: Thin, out: list[int]) -> bool:
    """Whether every rank-one product appears by itself, so that it can be rounded by itself.

    Complex numbers cannot be rounded.
    """
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return False
    _, (_, s_labels) = _order(thin, x_labels, out)
    return all(c in out for c in s_labels if c != RANK)


def _order(thin: Thin, x_labels: list[int], out: list[int]) -> list[tuple[Array, list[int]]]:
    """The two (factor, labels), the one that sums over more entries of x first."""
    summed = set(x_labels) - set(out)
    pairs = [(thin.left, thin.left_labels), (thin.right, thin.right_labels)]
    reach = [
        math.prod(size for c, size in zip(labels, f.shape, strict=True) if c in summed)
        for f, labels in pairs
    ]
    return pairs if reach[0] >= reach[1] else pairs[::-1]


def contract(
    a: Array,
    a_labels: list[int],
    b: Array,
    b_labels: list[int],
    out: list[int],
    *,
    dtype: DTypeLike,
    precision: lax.PrecisionLike = None,
) -> Array:
    """einsum(a, b -> out) in `dtype`: a dot_general, or a product if nothing is summed."""
    summed = [c for c in a_labels if c in b_labels and c not in out]
    if not summed:
        return _multiply(spread(a, a_labels, out), spread(b, b_labels, out), dtype)
    a, b = same_dtype(a, b)
    batch = [c for c in a_labels if c in b_labels and c in out]

    def where(labels: Sequence[int], wanted: Sequence[int]) -> list[int]:
        return [labels.index(c) for c in wanted]

    dims = (
        (where(a_labels, summed), where(b_labels, summed)),
        (where(a_labels, batch), where(b_labels, batch)),
    )
    holds = common_type(a.dtype, dtype) == dtype  # JAX sums in no narrower type than that of a
    wide = dtype if holds else a.dtype
    result = lax.dot_general(a, b, dims, precision=precision, preferred_element_type=wide)
    result = cast(result, dtype)
    order = [*batch, *(c for c in (*a_labels, *b_labels) if c not in batch and c not in summed)]
    return lax.transpose(result, where(order, out)) if order != out else result


def same_dtype(x: Array, factor: Array) -> tuple[Array, Array]:
    """Both in one type: that of x, the big operand, if it has room for numbers like the factor's.

    A complex factor has no room in floats, a float none in integers, and nothing in floats of 8
    bits: then both take their common type.
    """
    x, factor = cast(x, whole_bytes(x.dtype)), cast(factor, whole_bytes(factor.dtype))
    if x.dtype == factor.dtype:
        return x, factor
    kinds = (jnp.integer, jnp.floating, jnp.complexfloating)
    kind = lambda a: max((i for i, k in enumerate(kinds) if jnp.issubdtype(a.dtype, k)), default=0)
    if kind(x) >= max(1, kind(factor)) and not is_tiny(x.dtype):
        return x, cast(factor, x.dtype)
    wider = common_dtype(x, factor)
    return cast(x, wider), cast(factor, wider)


def spread(a: Array, labels: list[int], out: list[int]) -> Array:
    """Lay the axes of `a` out as `out`; axes that it lacks have size 1."""
    order = sorted(range(len(labels)), key=lambda i: out.index(labels[i]))
    a = lax.transpose(a, order) if order != list(range(len(labels))) else a
    return lax.expand_dims(a, [d for d, c in enumerate(out) if c not in labels])
