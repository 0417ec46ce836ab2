"""Lookups: rows of a low-rank weight are rows of the base plus products of factor rows."""

import dataclasses

import jax.numpy as jnp
from jax import Array, lax
from jax.extend import core as jex

from springroll import compat
from springroll.thin.axis_trace import AxisTrace, Refs, moved
from springroll.thin.factored_array import Factored, cast, saturate, wide_dtype
from springroll.thin.interpreter import Frame, Operand, Outputs
from springroll.thin.rules.shape import settle
from springroll.thin.thin_term import RANK, Thin, product_term


def gather(frame: Frame, eqn: jex.JaxprEqn, w: Operand, index: Operand) -> Outputs:
    """Gathers from base and from each factor, along the axes that each carries.

    Many rows at once become an activation; a single window (a dynamic slice in other clothes)
    stays Factored.
    """
    if not isinstance(w, Factored) or isinstance(index, Factored):
        return None
    base = compat.bind(eqn, w.base, index)[0]
    left, left_labels = _lookup(eqn, w, w.left, w.axes("left"), index)
    right, right_labels = _lookup(eqn, w, w.right, w.axes("right"), index)
    if index.ndim == 1:
        roles = "".join(role for i, role in enumerate(w.roles) if i in _window_axes(eqn, w.ndim))
        part = dataclasses.replace(w, base=base, left=left, right=right, roles=roles)
        return [settle(part)]
    wide = wide_dtype(base.dtype)
    thin = Thin(left, left_labels, right, right_labels, w.gain, w.lattice)
    term = product_term(thin, list(range(base.ndim)), dtype=wide)
    total = saturate(cast(base, wide) + term, base.dtype)
    if jnp.issubdtype(base.dtype, jnp.integer):  # what fills rows out of bounds is not clipped
        total = jnp.where(term == 0, base, total)
    return [total]


def gather_flow(trace: AxisTrace, eqn: jex.JaxprEqn, refs: list[Refs]) -> list[Refs]:
    dn = eqn.params["dimension_numbers"]
    if len(compat.shape_of(eqn.invars[1])) > 1:
        trace.use(eqn, refs[0], summed=dn.start_index_map, shared=dn.operand_batching_dims)
        return [()]
    shape = compat.shape_of(eqn.invars[0])
    remaining = [i for i in range(len(shape)) if i not in dn.collapsed_slice_dims]
    if sum(shape[i] > 1 for i in remaining) < 2:
        trace.use(eqn, refs[0], summed=dn.start_index_map)
        return [()]
    for axis in dn.collapsed_slice_dims:
        trace.stack(refs[0], axis)
    return [moved(refs[0], lambda r: [r.axes[i] for i in remaining])]


def _window_axes(eqn: jex.JaxprEqn, ndim: int) -> list[int]:
    """The operand axes that survive as windows, in order."""
    dn = eqn.params["dimension_numbers"]
    dropped = {*dn.collapsed_slice_dims, *dn.operand_batching_dims}
    return [i for i in range(ndim) if i not in dropped]


def _lookup(
    eqn: jex.JaxprEqn, w: Factored, factor: Array, axes: tuple[int, ...], index: Array
) -> tuple[Array, list[int]]:
    """The same gather on one factor, and the labels of its axes as positions in the output."""
    dn, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    window = _window_axes(eqn, w.ndim)
    position = dict(zip(window, dn.offset_dims, strict=True))
    mine = [i for i in window if i in axes]
    own_sizes = [*(sizes[i] for i in axes), factor.shape[-1]]
    starts = [i for i in dn.start_index_map if i in axes]
    batching = [i for i in dn.operand_batching_dims if i in axes]
    if not starts and not batching:
        return lax.slice(factor, [0] * factor.ndim, own_sizes), [*(position[i] for i in mine), RANK]
    n_index = index.ndim - 1
    n_out = n_index + len(window)
    columns = [dn.start_index_map.index(i) for i in starts]
    index_batching = dict(
        zip(dn.operand_batching_dims, dn.start_indices_batching_dims, strict=True)
    )
    numbers = lax.GatherDimensionNumbers(
        offset_dims=tuple(range(n_index, n_index + len(mine) + 1)),
        collapsed_slice_dims=tuple(axes.index(i) for i in dn.collapsed_slice_dims if i in axes),
        start_index_map=tuple(axes.index(i) for i in starts),
        operand_batching_dims=tuple(axes.index(i) for i in batching),
        start_indices_batching_dims=tuple(index_batching[i] for i in batching),
    )
    rows = lax.gather(
        factor,
        index[..., jnp.array(columns, jnp.int32)] if columns else index[..., :0],
        numbers,
        own_sizes,
        mode=eqn.params["mode"],
        indices_are_sorted=eqn.params["indices_are_sorted"],
        fill_value=0,  # a row out of bounds has no thin term
    )
    labels = [d for d in range(n_out) if d not in dn.offset_dims]
    return rows, [*labels, *(position[i] for i in mine), RANK]
