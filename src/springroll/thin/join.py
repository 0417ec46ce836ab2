"""Thin terms side by side: the sum, the concatenation and the product of weights stay thin.

Ranks add up: [l1 l2] [r1 r2].T = l1 r1.T + l2 r2.T. Gains become one number per rank component.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from springroll import compat
from springroll.thin.factored_array import Factored, cast, common_dtype, scale_rank, wide_dtype
from springroll.thin.interpreter import Frame
from springroll.thin.terms import RANK, Thin, contract, thin_term


def add_factored(a: Factored, b: Factored) -> list[Any] | None:
    """The sum of two weights: bases add, ranks stand side by side."""
    b = _aligned(b, a.roles)
    if b.roles != a.roles or b.lattice != a.lattice or a.shape != b.shape:
        return None
    base = lax.add(a.base, b.base)
    return [
        dataclasses.replace(
            a,
            base=base,
            left=_beside(a.left, b.left),
            right=_beside(a.right, b.right),
            gain=_gains([a, b]),
        )
    ]


def concatenate(frame: Frame, eqn: Any, *parts: Any) -> list[Any] | None:
    """Fused weights (q, k, v side by side); plain arrays may stand between factored ones.

    Along an m or n axis every part keeps its own rank block, zero outside its own rows. Along an
    s axis the factors are stacked as the bases are, and the rank is the largest of the parts.
    """
    return _concatenate(list(parts), eqn.params["dimension"])


def _concatenate(parts: list[Any], axis: int) -> list[Any] | None:
    first = next(p for p in parts if isinstance(p, Factored))
    parts = [_aligned(p, first.roles) if isinstance(p, Factored) else p for p in parts]
    thin = [p for p in parts if isinstance(p, Factored)]
    if any(p.roles != first.roles or p.lattice != first.lattice for p in thin):
        return None
    base = lax.concatenate([p.base if isinstance(p, Factored) else p for p in parts], axis)
    factors = _stack_shared if first.roles[axis] == "s" else _stack_blocks
    return [dataclasses.replace(first, base=base, **factors(parts, thin, axis))]


def stack(frame: Frame, eqn: Any, *parts: Any) -> list[Any] | None:
    """Weights on top of each other: the new axis is stacked, every layer keeps its own rank."""
    axis = eqn.params["axis"]

    def lifted(part: Any) -> Any:
        if not isinstance(part, Factored):
            return lax.expand_dims(part, [axis])
        go = lambda a, axes: lax.expand_dims(a, [sum(i < axis for i in axes)])
        return part.map(go, part.roles[:axis] + "s" + part.roles[axis:])

    return _concatenate([lifted(part) for part in parts], axis)


def _stack_blocks(parts: list[Any], thin: list[Factored], axis: int) -> dict[str, Any]:
    carrier, other = ("left", "right") if thin[0].roles[axis] == "m" else ("right", "left")
    at = thin[0].axes(carrier).index(axis)
    starts = _starts(parts, axis)
    total = sum(p.shape[axis] for p in parts)
    blocks = []
    for start, part in zip(starts, parts, strict=True):
        if isinstance(part, Factored):
            factor = getattr(part, carrier)
            blocks.append(_padded(factor, at, start, total - start - part.shape[axis]))
    others = [getattr(p, other) for p in thin]
    return {carrier: _beside(*blocks), other: _beside(*others), "gain": _gains(thin)}


def _stack_shared(parts: list[Any], thin: list[Factored], axis: int) -> dict[str, Any]:
    rank = max(p.rank for p in thin)

    def stacked(side: Any) -> Array:
        at = thin[0].axes(side).index(axis)
        dtype = common_dtype(*(getattr(p, side) for p in thin))
        rows = []
        for part in parts:
            if isinstance(part, Factored):
                f = getattr(part, side)
                f = scale_rank(f, part.gain) if side == "left" else f
                rows.append(cast(_padded(f, f.ndim - 1, 0, rank - part.rank), dtype))
            else:
                shape = [part.shape[i] for i in thin[0].axes(side)]
                rows.append(jnp.zeros((*shape, rank), dtype))
        return lax.concatenate(rows, at)

    return {"left": stacked("left"), "right": stacked("right"), "gain": None}


def product(frame: Frame, eqn: Any, a: Factored, b: Factored) -> list[Any] | None:
    """(a + l_a r_a.T) (b + l_b r_b.T) = a b + [a l_b, l_a] [r_b, (b + l_b r_b.T).T r_a].T.

    Stays thin, at rank r_a + r_b, when each weight sums over all axes of one factor and keeps all
    axes of the other (an evolved LoRA pair, two linear layers in a row).
    """
    (a_sum, b_sum), (a_batch, b_batch) = eqn.params["dimension_numbers"]
    a_kept, a_gone = _orientation(a, a_sum, a_batch)
    b_kept, b_gone = _orientation(b, b_sum, b_batch)
    if not (a_kept and b_kept) or a.lattice is not None or b.lattice is not None:
        return None
    a_labels, b_labels, out = dot_labels(eqn, a.ndim, b.ndim)
    a_free = [c for c in out if c in a_labels]  # both start with the batch axes
    b_free = [c for c in out if c in b_labels]
    dtype = eqn.outvars[0].aval.dtype
    options = {"dtype": wide_dtype(dtype), "precision": eqn.params["precision"]}

    end = [*(b_labels[i] for i in b.axes(b_gone)), RANK]
    left = contract(a.base, a_labels, getattr(b, b_gone), end, [*a_free, RANK], **options)
    left = cast(scale_rank(left, b.gain), dtype)

    # The summed factor of a plays the activation; its rank axis gets an ordinary label.
    a_rank = len(a_labels) + len(b_labels)
    x, x_labels = getattr(a, a_gone), [*(a_labels[i] for i in a.axes(a_gone)), a_rank]
    target = [*b_free, a_rank]
    right = contract(x, x_labels, b.base, b_labels, target, **options)
    right = right + thin_term(x, x_labels, Thin.of(b, b_labels), target, **options)
    right = cast(scale_rank(right, a.gain), dtype)

    kept_a = _ordered(getattr(a, a_kept), [a_labels[i] for i in a.axes(a_kept)], a_free)
    kept_b = _ordered(getattr(b, b_kept), [b_labels[i] for i in b.axes(b_kept)], b_free)
    batch = len(a_batch)
    roles = "s" * batch + "m" * (len(a_free) - batch) + "n" * (len(b_free) - batch)
    return [
        Factored(
            base=compat.bind(eqn, a.base, b.base)[0],
            left=_beside(left, kept_a),
            right=_beside(kept_b, right),
            roles=roles,
            path=f"{a.path} . {b.path}",
        )
    ]


def dot_labels(eqn: Any, a_ndim: int, b_ndim: int) -> tuple[list[int], list[int], list[int]]:
    """dot_general as an einsum: labels of a, of b and of the output."""
    (a_sum, b_sum), (a_batch, b_batch) = eqn.params["dimension_numbers"]
    a_labels = list(range(a_ndim))
    b_labels = list(range(a_ndim, a_ndim + b_ndim))
    for i, j in zip((*a_sum, *a_batch), (*b_sum, *b_batch), strict=True):
        b_labels[j] = a_labels[i]
    out = [
        *(a_labels[i] for i in a_batch),
        *(c for i, c in enumerate(a_labels) if i not in (*a_sum, *a_batch)),
        *(c for j, c in enumerate(b_labels) if j not in (*b_sum, *b_batch)),
    ]
    return a_labels, b_labels, out


def _orientation(w: Factored, summed: Any, batch: Any) -> tuple[Any, Any]:
    """(side that is kept, side that is summed), or (None, None) if an axis breaks the pattern."""
    if any((w.roles[i] == "s") != (i in batch) for i in range(w.ndim)):
        return None, None
    gone = {w.roles[i] for i in summed}
    kept = {w.roles[i] for i in range(w.ndim) if i not in (*summed, *batch)}
    if gone <= {"m"} and kept <= {"n"}:
        return "right", "left"
    if gone <= {"n"} and kept <= {"m"}:
        return "left", "right"
    return None, None


def _ordered(factor: Array, labels: list[int], wanted: list[int]) -> Array:
    return lax.transpose(factor, [*(labels.index(c) for c in wanted), len(labels)])


def _aligned(w: Factored, roles: str) -> Factored:
    """`w` with the letters m and n (and its factors) swapped if that gives `roles`."""
    swapped = w.roles.translate(str.maketrans("mn", "nm"))
    if w.roles == roles or swapped != roles:
        return w
    return dataclasses.replace(w, left=w.right, right=w.left, roles=swapped)


def _beside(*factors: Array) -> Array:
    """Factors next to each other along the rank, in a common dtype."""
    dtype = common_dtype(*factors)
    return lax.concatenate([cast(f, dtype) for f in factors], factors[0].ndim - 1)


def _gains(parts: list[Factored]) -> Array | None:
    """One gain per rank component of all parts, or None when none has a gain."""
    given = [jnp.asarray(p.gain) for p in parts if p.gain is not None]
    if not given:
        return None
    dtype = common_dtype(*given)
    whole = [
        jnp.ones((p.rank,), dtype)
        if p.gain is None
        else jnp.broadcast_to(cast(jnp.asarray(p.gain), dtype), (p.rank,))
        for p in parts
    ]
    return lax.concatenate(whole, 0)


def _starts(parts: list[Any], axis: int) -> list[int]:
    sizes = [p.shape[axis] for p in parts]
    return [sum(sizes[:k]) for k in range(len(sizes))]


def _padded(factor: Array, axis: int, before: int, after: int) -> Array:
    config = [(0, 0, 0)] * factor.ndim
    config[axis] = (before, after, 0)
    return lax.pad(factor, jnp.zeros((), factor.dtype), config)
