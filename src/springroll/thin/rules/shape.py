"""Rules that move or cut the axes of a weight and keep it low-rank."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax
from jax.extend import core as jex

from springroll import compat
from springroll.thin.axis_trace import AxisTrace, Flow, Ref, Refs, moved
from springroll.thin.factored_array import Factored, cast, common_dtype
from springroll.thin.interpreter import Frame, Operand, Outputs, is_coded


def identity(frame: Frame, eqn: jex.JaxprEqn, *ws: Operand) -> Outputs:
    return ws


def barrier(frame: Frame, eqn: jex.JaxprEqn, *ws: Operand) -> Outputs:
    """The bases pass it with everything else; factors need not."""
    outs = compat.bind(eqn, *(w.base if isinstance(w, Factored) else w for w in ws))
    return [
        dataclasses.replace(w, base=out) if isinstance(w, Factored) else out
        for w, out in zip(ws, outs, strict=True)
    ]


def each_part(frame: Frame, eqn: jex.JaxprEqn, w: Factored) -> Outputs:
    return [w.map(lambda a, axes: compat.bind(eqn, a)[0])]


def settle(w: Factored) -> Operand:
    """A row of a weight (nothing left of one factor's own axes) as a plain array.

    It is no bigger than the factor it came from, so this costs nothing and is not reported. Codes
    stay as they are: what the thin term adds to them is not to be rounded.
    """
    if is_coded(w):
        return w
    for own in "mn":
        if all(w.shape[i] == 1 for i, role in enumerate(w.roles) if role == own):
            return w.dense()
    return w


def transpose(frame: Frame, eqn: jex.JaxprEqn, w: Factored) -> Outputs:
    order = eqn.params["permutation"]

    def go(a: Array, axes: tuple[int, ...]) -> Array:
        own = [axes.index(p) for p in order if p in axes]
        return lax.transpose(a, (*own, *range(len(axes), a.ndim)))

    return [w.map(go, "".join(w.roles[p] for p in order))]


def transpose_flow(trace: AxisTrace, eqn: jex.JaxprEqn, refs: list[Refs]) -> list[Refs]:
    return [moved(refs[0], lambda r: [r.axes[i] for i in eqn.params["permutation"]])]


def squeeze(frame: Frame, eqn: jex.JaxprEqn, w: Factored) -> Outputs:
    drop = [d % w.ndim for d in eqn.params["dimensions"]]
    roles = "".join(role for i, role in enumerate(w.roles) if i not in drop)
    return [
        w.map(lambda a, axes: lax.squeeze(a, [axes.index(d) for d in drop if d in axes]), roles)
    ]


def dropped(name: str) -> Flow:
    """Of squeeze and reduce_sum: the axes in the parameter `name` go."""

    def flow(trace: AxisTrace, eqn: jex.JaxprEqn, refs: list[Refs]) -> list[Refs]:
        gone = {d % len(compat.shape_of(eqn.invars[0])) for d in eqn.params[name]}
        return [moved(refs[0], lambda r: [a for i, a in enumerate(r.axes) if i not in gone])]

    return flow


def reshape_groups(
    old: Sequence[int], new: Sequence[int]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The smallest groups (old axes, new axes) of equal size that a reshape maps onto each other.

    Axes of size 1 join a neighbouring group.

    >>> reshape_groups((6, 4), (2, 3, 4))
    [((0,), (0, 1)), ((1,), (2,))]
    """
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        olds: list[int] = []
        news: list[int] = []
        a = b = 1
        while not (a == b and a > 1):
            if i < len(old) and (a <= b or j == len(new)):
                a, i = a * old[i], i + 1
                olds.append(i - 1)
            elif j < len(new):
                b, j = b * new[j], j + 1
                news.append(j - 1)
            else:
                break
        groups.append((olds, news))
    return [(tuple(olds), tuple(news)) for olds, news in groups]


def reshape(frame: Frame, eqn: jex.JaxprEqn, w: Factored) -> Outputs:
    """Splits and merges axes within one role; an m axis cannot be merged with an n axis."""
    new = eqn.params["new_sizes"]
    roles = [""] * len(new)
    for olds, news in reshape_groups(w.shape, new):
        kinds = {w.roles[i] for i in olds if w.shape[i] > 1} or {"m"}
        if len(kinds) > 1:
            return None
        for j in news:
            (roles[j],) = kinds

    def sized(factor: Array, carried: str) -> Array:
        sizes = [size for size, role in zip(new, roles, strict=True) if role in carried]
        return lax.reshape(factor, (*sizes, factor.shape[-1]))

    base = lax.reshape(w.base, new)
    left, right = sized(w.left, "sm"), sized(w.right, "sn")
    return [dataclasses.replace(w, base=base, left=left, right=right, roles="".join(roles))]


def reshape_flow(trace: AxisTrace, eqn: jex.JaxprEqn, refs: list[Refs]) -> list[Refs]:
    sizes = eqn.params["new_sizes"]
    groups = reshape_groups(compat.shape_of(eqn.invars[0]), sizes)

    def axes(ref: Ref) -> list[tuple[int, ...]]:
        new: list[tuple[int, ...]] = [()] * len(sizes)
        for olds, news in groups:
            for j in news:
                new[j] = tuple(o for i in olds for o in ref.axes[i])
        return new

    return [moved(refs[0], axes)]


def broadcast_in_dim(frame: Frame, eqn: jex.JaxprEqn, w: Factored, *dynamic: Operand) -> Outputs:
    """A new axis takes the role of its neighbour (so that a repeat can be merged with it)."""
    shape, dims = eqn.params["shape"], list(eqn.params["broadcast_dimensions"])
    if dynamic or not dims:
        return None
    nearest = [max((k for k in dims if k <= d), default=dims[0]) for d in range(len(shape))]
    roles = "".join(w.roles[dims.index(k)] for k in nearest)

    def factor(a: Array, axes: tuple[int, ...], carried: str) -> Array:
        own = [d for d in range(len(shape)) if roles[d] in carried]
        sizes = [*(shape[d] for d in own), a.shape[-1]]
        return lax.broadcast_in_dim(a, sizes, [*(own.index(dims[i]) for i in axes), len(own)])

    return [
        dataclasses.replace(
            w,
            base=lax.broadcast_in_dim(w.base, shape, dims),
            left=factor(w.left, w.axes("left"), "sm"),
            right=factor(w.right, w.axes("right"), "sn"),
            roles=roles,
        )
    ]


def broadcast_flow(trace: AxisTrace, eqn: jex.JaxprEqn, refs: list[Refs]) -> list[Refs]:
    dims = eqn.params["broadcast_dimensions"]
    back = {d: i for i, d in enumerate(dims)}
    rank = len(eqn.params["shape"])
    return [moved(refs[0], lambda r: [r.axes[back[d]] if d in back else () for d in range(rank)])]


def slice_(frame: Frame, eqn: jex.JaxprEqn, w: Factored) -> Outputs:
    start, limit = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * w.ndim

    def go(a: Array, axes: tuple[int, ...]) -> Array:
        rank = a.shape[len(axes) :]
        low = [*(start[i] for i in axes), *(0 for _ in rank)]
        high = [*(limit[i] for i in axes), *rank]
        return lax.slice(a, low, high, [*(strides[i] for i in axes), *(1 for _ in rank)])

    return [settle(w.map(go))]


def dynamic_slice(frame: Frame, eqn: jex.JaxprEqn, w: Operand, *starts: Operand) -> Outputs:
    index = [i for i in starts if not isinstance(i, Factored)]
    if not isinstance(w, Factored) or len(index) < len(starts):
        return None
    sizes = eqn.params["slice_sizes"]

    def go(a: Array, axes: tuple[int, ...]) -> Array:
        rank = a.shape[len(axes) :]
        begin = [*(index[i] for i in axes), *(jnp.zeros_like(index[0]) for _ in rank)]
        return lax.dynamic_slice(a, begin, [*(sizes[i] for i in axes), *rank])

    return [settle(w.map(go))]


def window_flow(trace: AxisTrace, eqn: jex.JaxprEqn, refs: list[Refs]) -> list[Refs]:
    """slice and dynamic_slice: one entry of an axis is a layer of a stack or a looked-up row."""
    before, after = compat.shape_of(eqn.invars[0]), compat.shape_of(eqn.outvars[0])
    picked = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if b == 1 < a]
    left = [i for i, size in enumerate(after) if size > 1]
    traced = [a for a in eqn.invars[1:] if not isinstance(a, compat.Literal)]
    if picked and len(left) < 2 and traced:
        trace.use(eqn, refs[0], summed=picked)
        return [()]
    for axis in picked:
        trace.stack(refs[0], axis)
    return [moved(refs[0], lambda r: [() if i in picked else a for i, a in enumerate(r.axes)])]


def split(frame: Frame, eqn: jex.JaxprEqn, w: Factored) -> Outputs:
    axis, sizes = eqn.params["axis"], eqn.params["sizes"]

    def piece(low: int, high: int) -> Operand:
        def go(a: Array, axes: tuple[int, ...]) -> Array:
            return lax.slice_in_dim(a, low, high, axis=axes.index(axis)) if axis in axes else a

        return settle(w.map(go))

    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    return [piece(low, low + size) for low, size in zip(starts, sizes, strict=True)]


def unstack(frame: Frame, eqn: jex.JaxprEqn, w: Factored) -> Outputs:
    axis = eqn.params["axis"]
    roles = w.roles[:axis] + w.roles[axis + 1 :]

    def layer(k: int) -> Operand:
        def go(a: Array, axes: tuple[int, ...]) -> Array:
            return lax.index_in_dim(a, k, axes.index(axis), keepdims=False) if axis in axes else a

        return settle(w.map(go, roles))

    return [layer(k) for k in range(w.shape[axis])]


def unstack_flow(trace: AxisTrace, eqn: jex.JaxprEqn, refs: list[Refs]) -> list[Refs]:
    axis = eqn.params["axis"]
    trace.stack(refs[0], axis)
    layer = moved(refs[0], lambda r: [*r.axes[:axis], *r.axes[axis + 1 :]])
    return [layer for _ in eqn.outvars]


def tile(frame: Frame, eqn: jex.JaxprEqn, w: Factored) -> Outputs:
    reps = eqn.params["reps"]
    go = lambda a, axes: jnp.tile(a, (*(reps[i] for i in axes), *[1] * (a.ndim - len(axes))))
    return [w.map(go)]


def rev(frame: Frame, eqn: jex.JaxprEqn, w: Factored) -> Outputs:
    flipped = eqn.params["dimensions"]
    return [w.map(lambda a, axes: lax.rev(a, [axes.index(d) for d in flipped if d in axes]))]


def pad(frame: Frame, eqn: jex.JaxprEqn, w: Operand, value: Operand) -> Outputs:
    """The base is padded with the value, the factors with zeros."""
    if not isinstance(w, Factored) or isinstance(value, Factored):
        return None
    config = eqn.params["padding_config"]

    def zeros(a: Array, axes: tuple[int, ...]) -> Array:
        return lax.pad(a, jnp.zeros((), a.dtype), [*(config[i] for i in axes), (0, 0, 0)])

    left, right = zeros(w.left, w.axes("left")), zeros(w.right, w.axes("right"))
    return [dataclasses.replace(w, base=lax.pad(w.base, value, config), left=left, right=right)]


def reduce_sum(frame: Frame, eqn: jex.JaxprEqn, w: Factored) -> Outputs:
    """Summing axes of one factor: the other factor does not notice."""
    gone = set(eqn.params["axes"])
    if w.lattice is not None or {w.roles[i] for i in gone} not in ({"m"}, {"n"}):
        return None

    def go(a: Array, axes: tuple[int, ...]) -> Array:
        own = tuple(axes.index(i) for i in gone if i in axes)
        return jnp.sum(cast(a, common_dtype(a, w.base)), axis=own) if own else a

    roles = "".join(role for i, role in enumerate(w.roles) if i not in gone)
    return [settle(w.map(go, roles))]
