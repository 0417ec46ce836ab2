"""Rules that cast, scale or shift a weight and keep it thin."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax

from springroll import compat
from springroll.thin.factored_array import Factored, cast
from springroll.thin.interpreter import Frame
from springroll.thin.join import add_factored


def convert_element_type(frame: Frame, eqn: Any, w: Factored) -> list[Any] | None:
    """Casts the base, and the factors of a real weight; lattice factors keep their integers.

    The gain keeps its own type: it carries sigma, which short floats would round.
    """
    new = eqn.params["new_dtype"]
    if w.lattice is not None:
        numeric = jnp.issubdtype(new, jnp.integer) or jnp.issubdtype(new, jnp.floating)
        return [dataclasses.replace(w, base=cast(w.base, new))] if numeric else None
    real = any(jnp.issubdtype(part.dtype, jnp.inexact) for part in (w.base, w.left, w.right))
    if real and not jnp.issubdtype(new, jnp.inexact):
        return None
    return [w.map(lambda a, axes: cast(a, new))]


def reduce_precision(frame: Frame, eqn: Any, w: Factored) -> list[Any] | None:
    if w.lattice is not None:
        return None
    return [w.map(lambda a, axes: compat.bind(eqn, a)[0])]


def neg(frame: Frame, eqn: Any, w: Factored) -> list[Any] | None:
    return _negative(w)


def _negative(w: Factored) -> list[Any] | None:
    if w.lattice is not None and w.lattice.rounding == "floor":
        return None  # floor(-p) is not -floor(p)
    return [dataclasses.replace(w, base=-w.base, left=-w.left)]


def mul(frame: Frame, eqn: Any, a: Any, b: Any) -> list[Any] | None:
    if isinstance(a, Factored):
        return None if isinstance(b, Factored) else _scale(frame, eqn, a, b, eqn.invars[1])
    return _scale(frame, eqn, b, a, eqn.invars[0])


def div(frame: Frame, eqn: Any, a: Any, b: Any) -> list[Any] | None:
    if isinstance(b, Factored):
        return _elementwise(eqn, a, b) if _outgrown(eqn, b) else None
    return _scale(frame, eqn, a, b, eqn.invars[1])


def _scale(frame: Frame, eqn: Any, w: Factored, by: Any, atom: Any) -> list[Any] | None:
    """w * by or w / by, where `by` varies only along axes that one factor carries.

    That factor is scaled too: a scalar, a per-channel or a per-layer scale keeps the weight thin.
    """
    if _outgrown(eqn, w):
        return _elementwise(eqn, w, by)
    varies = frame.varies_along(atom)
    side = next((s for s in ("left", "right") if varies <= set(w.axes(s))), None)
    real = w.lattice is None and jnp.issubdtype(w.dtype, jnp.inexact)
    if not real or side is None:
        return None
    by = jnp.asarray(by)
    op = lax.mul if eqn.primitive.name == "mul" else lax.div
    base = op(w.base, jnp.broadcast_to(by, w.shape))
    factor = getattr(w, side)
    small = cast(_only(by, varies), factor.dtype)
    if small.ndim:
        kept = w.axes(side)
        small = lax.squeeze(small, [i for i in range(w.ndim) if i not in kept])
        small = lax.expand_dims(small, [small.ndim])
    factor = op(factor, jnp.broadcast_to(small, factor.shape))
    return [dataclasses.replace(w, base=base, **{side: factor})]


def _only(by: Any, varies: set[int]) -> Any:
    """`by` with every axis along which it is constant cut to size 1."""
    for i in range(by.ndim):
        if i not in varies:
            by = lax.slice_in_dim(by, 0, 1, axis=i)
    return by


def add(frame: Frame, eqn: Any, a: Any, b: Any) -> list[Any] | None:
    if isinstance(a, Factored) and isinstance(b, Factored):
        return add_factored(a, b)
    return _shift(eqn, a, b) if isinstance(a, Factored) else _shift(eqn, b, a)


def sub(frame: Frame, eqn: Any, a: Any, b: Any) -> list[Any] | None:
    if not isinstance(b, Factored):
        return _shift(eqn, a, b)
    if not isinstance(a, Factored) and _outgrown(eqn, b):
        return _elementwise(eqn, a, b)
    minus = _negative(b)
    if minus is None:
        return None
    if isinstance(a, Factored):
        return add_factored(a, minus[0])
    return [dataclasses.replace(minus[0], base=compat.bind(eqn, a, b.base)[0])]


def _shift(eqn: Any, w: Factored, plain: Any) -> list[Any] | None:
    """w + plain or w - plain (a LoRA merge, an offset): only the base moves."""
    if _outgrown(eqn, w):
        return _elementwise(eqn, w, plain)
    return [dataclasses.replace(w, base=compat.bind(eqn, w.base, plain)[0])]


def _outgrown(eqn: Any, w: Factored) -> bool:
    """A small weight broadcast against a bigger activation (positions, gates)."""
    return tuple(eqn.outvars[0].aval.shape) != tuple(w.shape)


def _elementwise(eqn: Any, *operands: Any) -> list[Any]:
    """The plain operation: the dense weight is smaller than the result, so nothing is reported."""
    whole = [v.dense() if isinstance(v, Factored) else v for v in operands]
    return compat.bind(eqn, *whole)
