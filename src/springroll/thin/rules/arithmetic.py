"""Rules that cast, scale or shift a weight and keep it low-rank."""

import dataclasses

import jax.numpy as jnp
from jax import Array, lax
from jax.extend import core as jex
from jax.typing import DTypeLike

from springroll import compat
from springroll.thin.factored_array import (
    SIDES,
    Factored,
    Side,
    cast,
    common_dtype,
    computable,
    is_tiny,
)
from springroll.thin.interpreter import Frame, Operand, Outputs
from springroll.thin.rules.joining import add_factored


def convert_element_type(frame: Frame, eqn: jex.JaxprEqn, w: Factored) -> Outputs:
    """Casts the base, and the factors of a real weight; lattice factors keep their integers.

    The gain keeps its own type: it carries sigma, which short floats would round. So do factors
    beside a base of 8 bits. The real part of a complex product is not that of its factors.
    """
    new = eqn.params["new_dtype"]
    base = cast(w.base, new)
    if w.lattice is not None:
        return [dataclasses.replace(w, base=base)] if _holds_int8(new) else None
    if jnp.issubdtype(w.dtype, jnp.integer) and jnp.issubdtype(new, jnp.integer):
        return None  # it may wrap around
    for kind in (jnp.inexact, jnp.complexfloating):
        loses = any(jnp.issubdtype(part.dtype, kind) for part in (w.base, w.left, w.right))
        if loses and not jnp.issubdtype(new, kind):
            return None
    if is_tiny(new):
        return [dataclasses.replace(w, base=base)]
    left, right = (cast(w.factor(side), computable(new)) for side in SIDES)
    return [dataclasses.replace(w, base=base, left=left, right=right)]


def _holds_int8(dtype: DTypeLike) -> bool:
    if jnp.issubdtype(dtype, jnp.integer):
        return jnp.iinfo(dtype).bits >= 8
    return jnp.issubdtype(dtype, jnp.floating) and not is_tiny(dtype)


def reduce_precision(frame: Frame, eqn: jex.JaxprEqn, w: Factored) -> Outputs:
    if w.lattice is not None:
        return None
    round_floats = lambda a, axes: (
        compat.bind(eqn, a)[0] if jnp.issubdtype(a.dtype, jnp.inexact) else a
    )
    return [w.map(round_floats)]


def neg(frame: Frame, eqn: jex.JaxprEqn, w: Factored) -> Outputs:
    minus = _negative(w)
    return None if minus is None else [minus]


def _negative(w: Factored) -> Factored | None:
    if w.lattice is not None and w.lattice.rounding == "floor":
        return None  # floor(-p) is not -floor(p)
    return dataclasses.replace(w, base=-w.base, left=-w.left)


def mul(frame: Frame, eqn: jex.JaxprEqn, a: Operand, b: Operand) -> Outputs:
    if isinstance(a, Factored):
        return None if isinstance(b, Factored) else _scale(frame, eqn, a, b, eqn.invars[1])
    return _scale(frame, eqn, b, a, eqn.invars[0]) if isinstance(b, Factored) else None


def div(frame: Frame, eqn: jex.JaxprEqn, a: Operand, b: Operand) -> Outputs:
    if isinstance(b, Factored):
        return _elementwise(eqn, a, b) if _outgrown(eqn, b) else None
    return _scale(frame, eqn, a, b, eqn.invars[1]) if isinstance(a, Factored) else None


def _scale(
    frame: Frame, eqn: jex.JaxprEqn, w: Factored, by: Array, atom: jex.Var | jex.Literal
) -> Outputs:
    """w * by or w / by, where `by` varies only along axes that one factor carries.

    That factor is scaled too: a scalar, a per-channel or a per-layer scale keeps the weight thin.
    """
    if _outgrown(eqn, w):
        return _elementwise(eqn, w, by)
    varies = frame.varies_along(atom)
    side: Side | None = next((side for side in SIDES if varies <= set(w.axes(side))), None)
    real = w.lattice is None and jnp.issubdtype(w.dtype, jnp.inexact)
    if not real or side is None:
        return None
    by = jnp.asarray(by)
    op = lax.mul if eqn.primitive.name == "mul" else lax.div
    base = op(w.base, jnp.broadcast_to(by, w.shape))
    exact = common_dtype(w.base, w.factor(side))  # integer noise would lose the scale
    factor = cast(w.factor(side), exact)
    small = cast(_only(by, varies), exact)
    if small.ndim:
        own = w.axes(side)
        small = lax.squeeze(small, [i for i in range(w.ndim) if i not in own])
        small = lax.expand_dims(small, [small.ndim])
    factor = op(factor, jnp.broadcast_to(small, factor.shape))
    return [dataclasses.replace(w, base=base, **{side: factor})]


def _only(by: Array, varies: set[int]) -> Array:
    """`by` with every axis along which it is constant cut to size 1."""
    for i in range(by.ndim):
        if i not in varies:
            by = lax.slice_in_dim(by, 0, 1, axis=i)
    return by


def add(frame: Frame, eqn: jex.JaxprEqn, a: Operand, b: Operand) -> Outputs:
    if isinstance(a, Factored) and isinstance(b, Factored):
        return add_factored(a, b)
    if isinstance(b, Factored):
        a, b = b, a
    return None if isinstance(b, Factored) or not isinstance(a, Factored) else _shift(eqn, a, b)


def sub(frame: Frame, eqn: jex.JaxprEqn, a: Operand, b: Operand) -> Outputs:
    if not isinstance(b, Factored):
        return _shift(eqn, a, b) if isinstance(a, Factored) else None
    if not isinstance(a, Factored) and _outgrown(eqn, b):
        return _elementwise(eqn, a, b)
    minus = _negative(b)
    if minus is None:
        return None
    if isinstance(a, Factored):
        return add_factored(a, minus)
    return [dataclasses.replace(minus, base=compat.bind(eqn, a, b.base)[0])]


def _shift(eqn: jex.JaxprEqn, w: Factored, plain: Array) -> Outputs:
    """w + plain or w - plain (a LoRA merge, an offset): only the base moves."""
    if _outgrown(eqn, w):
        return _elementwise(eqn, w, plain)
    return [dataclasses.replace(w, base=compat.bind(eqn, w.base, plain)[0])]


def _outgrown(eqn: jex.JaxprEqn, w: Factored) -> bool:
    """A small weight broadcast against a bigger activation (positions, gates)."""
    return compat.shape_of(eqn.outvars[0]) != tuple(w.shape)


def _elementwise(eqn: jex.JaxprEqn, *operands: Operand) -> Outputs:
    """The plain operation: the dense weight is smaller than the result, so nothing is reported."""
    return compat.bind(eqn, *(v.dense() if isinstance(v, Factored) else v for v in operands))
