"""Rules that move the axes of a weight and keep it thin: Factored in, Factored out."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax

from springroll import compat
from springroll.thin.factored_array import Factored
from springroll.thin.interpreter import Frame
from springroll.thin.reshape import reshape_groups


def identity(frame: Frame, eqn: Any, *ws: Any) -> list[Any]:
    return list(ws)


def barrier(frame: Frame, eqn: Any, *ws: Any) -> list[Any]:
    """The bases pass it with everything else; factors need not."""
    outs = compat.bind(eqn, *(w.base if isinstance(w, Factored) else w for w in ws))
    return [
        dataclasses.replace(w, base=out) if isinstance(w, Factored) else out
        for w, out in zip(ws, outs, strict=True)
    ]


def each_part(frame: Frame, eqn: Any, w: Factored) -> list[Any]:
    return [w.map(lambda a, axes: compat.bind(eqn, a)[0])]


def settle(w: Factored) -> Any:
    """A row of a weight (nothing left of one factor's own axes) as a plain array.

    It is no bigger than the factor it came from, so this costs nothing and is not reported.
    """
    for own in "mn":
        if all(w.shape[i] == 1 for i, role in enumerate(w.roles) if role == own):
            return w.dense()
    return w


def transpose(frame: Frame, eqn: Any, w: Factored) -> list[Any]:
    order = eqn.params["permutation"]

    def go(a: Any, axes: tuple[int, ...]) -> Any:
        moved = [axes.index(p) for p in order if p in axes]
        return lax.transpose(a, (*moved, *range(len(axes), a.ndim)))

    return [w.map(go, "".join(w.roles[p] for p in order))]


def squeeze(frame: Frame, eqn: Any, w: Factored) -> list[Any]:
    drop = [d % w.ndim for d in eqn.params["dimensions"]]
    roles = "".join(role for i, role in enumerate(w.roles) if i not in drop)
    return [
        w.map(lambda a, axes: lax.squeeze(a, [axes.index(d) for d in drop if d in axes]), roles)
    ]


def reshape(frame: Frame, eqn: Any, w: Factored) -> list[Any] | None:
    """Splits and merges axes within one role; merging an m axis with an n axis is not thin."""
    new = eqn.params["new_sizes"]
    roles = [""] * len(new)
    for olds, news in reshape_groups(w.shape, new):
        kinds = {w.roles[i] for i in olds if w.shape[i] > 1} or {"m"}
        if len(kinds) > 1:
            return None
        for j in news:
            (roles[j],) = kinds

    def sized(factor: Any, carried: str) -> Any:
        sizes = [size for size, role in zip(new, roles, strict=True) if role in carried]
        return lax.reshape(factor, (*sizes, factor.shape[-1]))

    base = lax.reshape(w.base, new)
    left, right = sized(w.left, "sm"), sized(w.right, "sn")
    return [dataclasses.replace(w, base=base, left=left, right=right, roles="".join(roles))]


def broadcast_in_dim(frame: Frame, eqn: Any, w: Factored, *dynamic: Any) -> list[Any] | None:
    """A new axis takes the role of its neighbour (so that a repeat can be merged with it)."""
    shape, dims = eqn.params["shape"], list(eqn.params["broadcast_dimensions"])
    if dynamic or not dims:
        return None
    nearest = [max((k for k in dims if k <= d), default=dims[0]) for d in range(len(shape))]
    roles = "".join(w.roles[dims.index(k)] for k in nearest)

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


def slice_(frame: Frame, eqn: Any, w: Factored) -> list[Any]:
    start, limit = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * w.ndim

    def go(a: Any, axes: tuple[int, ...]) -> Any:
        rank = a.shape[len(axes) :]
        low = [*(start[i] for i in axes), *(0 for _ in rank)]
        high = [*(limit[i] for i in axes), *rank]
        return lax.slice(a, low, high, [*(strides[i] for i in axes), *(1 for _ in rank)])

    return [settle(w.map(go))]


def dynamic_slice(frame: Frame, eqn: Any, w: Any, *index: Any) -> list[Any] | None:
    if not isinstance(w, Factored) or any(isinstance(i, Factored) for i in index):
        return None
    sizes = eqn.params["slice_sizes"]

    def go(a: Any, axes: tuple[int, ...]) -> Any:
        rank = a.shape[len(axes) :]
        begin = [*(index[i] for i in axes), *(jnp.zeros_like(index[0]) for _ in rank)]
        return lax.dynamic_slice(a, begin, [*(sizes[i] for i in axes), *rank])

    return [settle(w.map(go))]


def split(frame: Frame, eqn: Any, w: Factored) -> list[Any]:
    axis, sizes = eqn.params["axis"], eqn.params["sizes"]

    def piece(low: int, high: int) -> Any:
        def go(a: Any, axes: tuple[int, ...]) -> Any:
            return lax.slice_in_dim(a, low, high, axis=axes.index(axis)) if axis in axes else a

        return settle(w.map(go))

    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    return [piece(low, low + size) for low, size in zip(starts, sizes, strict=True)]


def unstack(frame: Frame, eqn: Any, w: Factored) -> list[Any]:
    axis = eqn.params["axis"]
    roles = w.roles[:axis] + w.roles[axis + 1 :]

    def layer(k: int) -> Any:
        def go(a: Any, axes: tuple[int, ...]) -> Any:
            return lax.index_in_dim(a, k, axes.index(axis), keepdims=False) if axis in axes else a

        return settle(w.map(go, roles))

    return [layer(k) for k in range(w.shape[axis])]


def tile(frame: Frame, eqn: Any, w: Factored) -> list[Any]:
    reps = eqn.params["reps"]
    go = lambda a, axes: jnp.tile(a, (*(reps[i] for i in axes), *[1] * (a.ndim - len(axes))))
    return [w.map(go)]


def rev(frame: Frame, eqn: Any, w: Factored) -> list[Any]:
    flipped = eqn.params["dimensions"]
    return [w.map(lambda a, axes: lax.rev(a, [axes.index(d) for d in flipped if d in axes]))]


def pad(frame: Frame, eqn: Any, w: Any, value: Any) -> list[Any] | None:
    """The base is padded with the value, the factors with zeros."""
    if not isinstance(w, Factored) or isinstance(value, Factored):
        return None
    config = eqn.params["padding_config"]

    def zeros(a: Any, axes: tuple[int, ...]) -> Any:
        return lax.pad(a, jnp.zeros((), a.dtype), [*(config[i] for i in axes), (0, 0, 0)])

    left, right = zeros(w.left, w.axes("left")), zeros(w.right, w.axes("right"))
    return [dataclasses.replace(w, base=lax.pad(w.base, value, config), left=left, right=right)]


def reduce_sum(frame: Frame, eqn: Any, w: Factored) -> list[Any] | None:
    """Summing axes of one factor: the other factor does not notice."""
    gone = set(eqn.params["axes"])
    if w.lattice is not None or {w.roles[i] for i in gone} not in ({"m"}, {"n"}):
        return None

    def go(a: Any, axes: tuple[int, ...]) -> Any:
        return jnp.sum(a, axis=tuple(axes.index(i) for i in gone if i in axes))

    roles = "".join(role for i, role in enumerate(w.roles) if i not in gone)
    return [settle(w.map(go, roles))]
