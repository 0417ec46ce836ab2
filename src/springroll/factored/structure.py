"""Rules that keep a weight thin: Factored in, Factored out."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax

from springroll.factored import _compat
from springroll.factored.factored import Factored
from springroll.factored.reshape import reshape_groups


def identity(frame: Any, eqn: Any, *ws: Any) -> list[Any]:
    return list(ws)


def each_part(frame: Any, eqn: Any, *ws: Any) -> list[Any]:
    def one(w: Any) -> Any:
        if not isinstance(w, Factored):
            return _compat.bind(eqn, w)[0]
        return w.map(lambda a, axes: _compat.bind(eqn, a)[0])

    return [one(w) for w in ws]


def base_only(frame: Any, eqn: Any, w: Factored) -> list[Any]:
    """A layout wish for the big array; XLA places the thin factors itself."""
    return [dataclasses.replace(w, base=_compat.bind(eqn, w.base)[0])]


def convert_element_type(frame: Any, eqn: Any, w: Factored) -> list[Any] | None:
    """Casts the base, and the factors of a real weight; lattice factors keep their integers."""
    new = eqn.params["new_dtype"]
    if w.lattice is not None:
        keeps_integers = jnp.issubdtype(new, jnp.integer) or jnp.issubdtype(new, jnp.floating)
        return [dataclasses.replace(w, base=_cast(w.base, new))] if keeps_integers else None
    if not jnp.issubdtype(new, jnp.inexact):
        return None
    return [w.map(lambda a, axes: _cast(a, new))]


def neg(frame: Any, eqn: Any, w: Factored) -> list[Any] | None:
    if w.lattice is not None and w.lattice.rounding == "floor":
        return None  # floor(-p) is not -floor(p)
    return [dataclasses.replace(w, base=-w.base, left=-w.left)]


def mul(frame: Any, eqn: Any, a: Any, b: Any) -> list[Any] | None:
    if isinstance(a, Factored):
        return None if isinstance(b, Factored) else _scale(frame, eqn, a, b, eqn.invars[1])
    return _scale(frame, eqn, b, a, eqn.invars[0])


def div(frame: Any, eqn: Any, a: Any, b: Any) -> list[Any] | None:
    return None if isinstance(b, Factored) else _scale(frame, eqn, a, b, eqn.invars[1])


def _scale(frame: Any, eqn: Any, w: Factored, by: Any, atom: Any) -> list[Any] | None:
    """Multiply or divide by an array that varies only along the axes of one factor."""
    if w.lattice is not None:
        return None
    varies = frame.varies_along(atom)
    side = next((s for s in ("left", "right") if varies <= set(w.axes(s))), None)
    out_shape = tuple(eqn.outvars[0].aval.shape)
    if side is None or out_shape != tuple(w.shape):
        return None
    factor = getattr(w, side)
    if jnp.ndim(by):
        ones = [i for i in range(w.ndim) if i not in varies]
        for i in ones:
            by = lax.slice_in_dim(by, 0, 1, axis=i)
        small = lax.squeeze(by, [i for i in range(w.ndim) if i not in w.axes(side)])
        small = lax.expand_dims(small, [small.ndim])
    else:
        small = jnp.asarray(by)
    small = _cast(small, factor.dtype)
    op = jnp.multiply if eqn.primitive.name == "mul" else jnp.divide
    base = op(w.base, _cast(jnp.asarray(by), w.dtype))
    return [dataclasses.replace(w, base=base, **{side: op(factor, small)})]


def add(frame: Any, eqn: Any, a: Any, b: Any) -> list[Any] | None:
    if isinstance(a, Factored) and isinstance(b, Factored):
        return None
    w, plain = (a, b) if isinstance(a, Factored) else (b, a)
    return _shift(eqn, w, plain)


def sub(frame: Any, eqn: Any, a: Any, b: Any) -> list[Any] | None:
    if isinstance(a, Factored) and isinstance(b, Factored):
        return None
    if isinstance(a, Factored):
        return _shift(eqn, a, b)
    negative = neg(frame, eqn, b)
    if negative is None or tuple(eqn.outvars[0].aval.shape) != tuple(b.shape):
        return None
    return [dataclasses.replace(negative[0], base=_compat.bind(eqn, a, b.base)[0])]


def _shift(eqn: Any, w: Factored, plain: Any) -> list[Any] | None:
    """w + plain or w - plain: only the base moves."""
    if tuple(eqn.outvars[0].aval.shape) != tuple(w.shape):
        return None
    return [dataclasses.replace(w, base=_compat.bind(eqn, w.base, plain)[0])]


def transpose(frame: Any, eqn: Any, w: Factored) -> list[Any]:
    order = eqn.params["permutation"]

    def go(a: Any, axes: tuple[int, ...]) -> Any:
        moved = [axes.index(p) for p in order if p in axes]
        return lax.transpose(a, (*moved, *range(len(axes), a.ndim)))

    return [w.map(go, "".join(w.roles[p] for p in order))]


def squeeze(frame: Any, eqn: Any, w: Factored) -> list[Any]:
    drop = [d % w.ndim for d in eqn.params["dimensions"]]
    roles = "".join(role for i, role in enumerate(w.roles) if i not in drop)
    return [
        w.map(lambda a, axes: lax.squeeze(a, [axes.index(d) for d in drop if d in axes]), roles)
    ]


def reshape(frame: Any, eqn: Any, w: Factored) -> list[Any] | None:
    """Splits and merges axes within one role; merging an m axis with an n axis is not thin."""
    new = eqn.params["new_sizes"]
    roles = [""] * len(new)
    for olds, news in reshape_groups(w.shape, new):
        kinds = {w.roles[i] for i in olds if w.shape[i] > 1} or {w.roles[i] for i in olds} or {"m"}
        if len(kinds) > 1:
            return None
        for j in news:
            roles[j] = min(kinds)

    def sized(factor: Any, carried: str) -> Any:
        sizes = [size for size, role in zip(new, roles, strict=True) if role in carried]
        return lax.reshape(factor, (*sizes, factor.shape[-1]))

    base = lax.reshape(w.base, new)
    left, right = sized(w.left, "sm"), sized(w.right, "sn")
    return [dataclasses.replace(w, base=base, left=left, right=right, roles="".join(roles))]


def broadcast_in_dim(frame: Any, eqn: Any, w: Factored, *dynamic: Any) -> list[Any] | None:
    """New axes are carried by left; a size-1 axis may grow on whichever factor carries it."""
    shape, dims = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    if dynamic:
        return None
    roles = "".join(w.roles[dims.index(d)] if d in dims else "m" for d in range(len(shape)))

    def factor(a: Any, axes: tuple[int, ...], carried: str) -> Any:
        kept = [d for d in range(len(shape)) if roles[d] in carried]
        sizes = [*(shape[d] for d in kept), a.shape[-1]]
        return lax.broadcast_in_dim(a, sizes, [*(kept.index(dims[i]) for i in axes), len(kept)])

    return [
        dataclasses.replace(
            w,
            base=lax.broadcast_in_dim(w.base, shape, dims),
            left=factor(w.left, w.axes("left"), "sm"),
            right=factor(w.right, w.axes("right"), "sn"),
            roles=roles,
        )
    ]


def slice_(frame: Any, eqn: Any, w: Factored) -> list[Any]:
    start, limit = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * w.ndim

    def go(a: Any, axes: tuple[int, ...]) -> Any:
        rank = a.shape[len(axes) :]
        low = [*(start[i] for i in axes), *(0 for _ in rank)]
        high = [*(limit[i] for i in axes), *rank]
        return lax.slice(a, low, high, [*(strides[i] for i in axes), *(1 for _ in rank)])

    return [w.map(go)]


def dynamic_slice(frame: Any, eqn: Any, w: Any, *index: Any) -> list[Any] | None:
    if not isinstance(w, Factored) or any(isinstance(i, Factored) for i in index):
        return None
    sizes = eqn.params["slice_sizes"]

    def go(a: Any, axes: tuple[int, ...]) -> Any:
        rank = a.shape[len(axes) :]
        begin = [*(index[i] for i in axes), *(jnp.zeros_like(index[0]) for _ in rank)]
        return lax.dynamic_slice(a, begin, [*(sizes[i] for i in axes), *rank])

    return [w.map(go)]


def split(frame: Any, eqn: Any, w: Factored) -> list[Any]:
    axis, sizes = eqn.params["axis"], eqn.params["sizes"]

    def piece(low: int, high: int) -> Factored:
        def go(a: Any, axes: tuple[int, ...]) -> Any:
            return lax.slice_in_dim(a, low, high, axis=axes.index(axis)) if axis in axes else a

        return w.map(go)

    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    return [piece(low, low + size) for low, size in zip(starts, sizes, strict=True)]


def _cast(x: Any, dtype: Any) -> Any:
    return x if x.dtype == jnp.dtype(dtype) else lax.convert_element_type(x, dtype)
