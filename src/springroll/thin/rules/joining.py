"""Low-rank terms side by side: the sum and the concatenation of weights stay low-rank.

Ranks add up: [l1 l2] [r1 r2].T = l1 r1.T + l2 r2.T. Gains become one number per rank component.
"""

import dataclasses

import jax.numpy as jnp
from jax import Array, lax
from jax.extend import core as jex

from springroll.thin.axis_trace import AxisTrace, Refs, moved
from springroll.thin.factored_array import (
    Factored,
    Gain,
    Side,
    cast,
    common_dtype,
    scale_rank,
    wide_dtype,
)
from springroll.thin.interpreter import Frame, Operand, Outputs


def add_factored(a: Factored, b: Factored) -> Outputs:
    """The sum of two weights: bases add, ranks stand side by side."""
    b = _aligned(b, a.roles)
    if b.roles != a.roles or b.lattice != a.lattice or a.shape != b.shape:
        return None
    base = lax.add(a.base, b.base)
    return [
        dataclasses.replace(
            a,
            base=base,
            left=side_by_side(a.left, b.left),
            right=side_by_side(a.right, b.right),
            gain=_joined_gains([a, b]),
        )
    ]


def concatenate(frame: Frame, eqn: jex.JaxprEqn, *parts: Operand) -> Outputs:
    """Fused weights (q, k, v side by side); plain arrays may stand between factored ones.

    Along an m or n axis every part keeps its own rank block, zero outside its own rows. Along an
    s axis the factors are stacked as the bases are, and the rank is the largest of the parts.
    """
    return _concatenate(list(parts), eqn.params["dimension"])


def concatenate_flow(trace: AxisTrace, eqn: jex.JaxprEqn, refs: list[Refs]) -> list[Refs]:
    return [tuple(ref for operand in refs for ref in operand)]


def _concatenate(parts: list[Operand], axis: int) -> Outputs:
    first = next(p for p in parts if isinstance(p, Factored))
    parts = [_aligned(p, first.roles) if isinstance(p, Factored) else p for p in parts]
    thin = [p for p in parts if isinstance(p, Factored)]
    if any(p.roles != first.roles or p.lattice != first.lattice for p in thin):
        return None
    if first.roles[axis] == "s" and any(map(_rounded_with_gain, thin)):
        return None
    base = lax.concatenate([p.base if isinstance(p, Factored) else p for p in parts], axis)
    factors = _stack_shared if first.roles[axis] == "s" else _stack_blocks
    return [dataclasses.replace(first, base=base, **factors(parts, thin, axis))]


def stack(frame: Frame, eqn: jex.JaxprEqn, *parts: Operand) -> Outputs:
    """Weights on top of each other: the new axis is stacked, every layer keeps its own rank."""
    axis = eqn.params["axis"]

    def lifted(part: Operand) -> Operand:
        if not isinstance(part, Factored):
            return lax.expand_dims(part, [axis])
        go = lambda a, axes: lax.expand_dims(a, [sum(i < axis for i in axes)])
        return part.map(go, part.roles[:axis] + "s" + part.roles[axis:])

    return _concatenate([lifted(part) for part in parts], axis)


def stack_flow(trace: AxisTrace, eqn: jex.JaxprEqn, refs: list[Refs]) -> list[Refs]:
    axis = eqn.params["axis"]
    lifted = lambda r: [*r.axes[:axis], (), *r.axes[axis:]]
    return [tuple(ref for operand in refs for ref in moved(operand, lifted))]


def _stack_blocks(parts: list[Operand], thin: list[Factored], axis: int) -> dict[str, Gain]:
    carrier: Side = "left" if thin[0].roles[axis] == "m" else "right"
    other: Side = "right" if carrier == "left" else "left"
    at = thin[0].axes(carrier).index(axis)
    starts = _starts(parts, axis)
    total = sum(p.shape[axis] for p in parts)
    blocks = []
    for start, part in zip(starts, parts, strict=True):
        if isinstance(part, Factored):
            factor = part.factor(carrier)
            blocks.append(_padded(factor, at, start, total - start - part.shape[axis]))
    others = [p.factor(other) for p in thin]
    return {
        carrier: side_by_side(*blocks),
        other: side_by_side(*others),
        "gain": _joined_gains(thin),
    }


def _stack_shared(parts: list[Operand], thin: list[Factored], axis: int) -> dict[str, Gain]:
    rank = max(p.rank for p in thin)

    def stacked(side: Side) -> Array:
        at = thin[0].axes(side).index(axis)
        dtype = common_dtype(*(p.factor(side) for p in thin))
        if side == "left" and thin[0].lattice is None and any(p.gain is not None for p in thin):
            # The gain becomes a part of the factor, which must have room for it.
            dtype = wide_dtype(common_dtype(*(part for p in thin for part in (p.base, p.left))))
        rows = []
        for part in parts:
            if isinstance(part, Factored):
                f = cast(part.factor(side), dtype)
                f = scale_rank(f, part.gain) if side == "left" else f
                rows.append(_padded(f, f.ndim - 1, 0, rank - part.rank))
            else:
                shape = [part.shape[i] for i in thin[0].axes(side)]
                rows.append(jnp.zeros((*shape, rank), dtype))
        return lax.concatenate(rows, at)

    return {"left": stacked("left"), "right": stacked("right"), "gain": None}


def _rounded_with_gain(w: Factored) -> bool:
    """Whether the gain cannot become a part of the factors, since it counts before rounding."""
    if w.lattice is None or w.gain is None:
        return False
    return jnp.issubdtype(jnp.result_type(w.gain), jnp.inexact)


def _aligned(w: Factored, roles: str) -> Factored:
    """`w` with the letters m and n (and its factors) swapped if that gives `roles`."""
    swapped = w.roles.translate(str.maketrans("mn", "nm"))
    if w.roles == roles or swapped != roles:
        return w
    return dataclasses.replace(w, left=w.right, right=w.left, roles=swapped)


def side_by_side(*factors: Array) -> Array:
    """Factors next to each other along the rank, in a common dtype."""
    dtype = common_dtype(*factors)
    return lax.concatenate([cast(f, dtype) for f in factors], factors[0].ndim - 1)


def _joined_gains(parts: list[Factored]) -> Array | None:
    """One gain per rank component of all parts, or None when none has a gain."""
    gains = [jnp.asarray(p.gain) for p in parts if p.gain is not None]
    if not gains:
        return None
    dtype = common_dtype(*gains)
    per_component = [
        jnp.ones((p.rank,), dtype)
        if p.gain is None
        else jnp.broadcast_to(cast(jnp.asarray(p.gain), dtype), (p.rank,))
        for p in parts
    ]
    return lax.concatenate(per_component, 0)


def _starts(parts: list[Operand], axis: int) -> list[int]:
    sizes = [p.shape[axis] for p in parts]
    return [sum(sizes[:k]) for k in range(len(sizes))]


def _padded(factor: Array, axis: int, before: int, after: int) -> Array:
    config = [(0, 0, 0)] * factor.ndim
    config[axis] = (before, after, 0)
    return lax.pad(factor, jnp.zeros((), factor.dtype), config)
