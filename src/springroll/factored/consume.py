"""Rules that use a weight up: Factored in, activation out."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from springroll.factored import _compat
from springroll.factored.factored import Factored, saturate, scale_rank, wide_dtype
from springroll.factored.thin import RANK, contract, spread, thin_term


def dot_general(frame: Any, eqn: Any, a: Any, b: Any) -> list[Any] | None:
    """x . w = x . base + (gain * (x . right)) . left: one shared GEMM and two thin products."""
    if isinstance(a, Factored) and isinstance(b, Factored):
        # The smaller weight is formed; its report counts the product if that is bigger still.
        if _compat.size(a.base) <= _compat.size(b.base):
            a = frame.dense(a, eqn)
        else:
            b = frame.dense(b, eqn)
    (a_sum, b_sum), (a_batch, b_batch) = eqn.params["dimension_numbers"]
    a_labels = list(range(a.ndim))
    b_labels = list(range(a.ndim, a.ndim + b.ndim))
    for i, j in zip((*a_sum, *a_batch), (*b_sum, *b_batch), strict=True):
        b_labels[j] = a_labels[i]
    out = [
        *(a_labels[i] for i in a_batch),
        *(c for i, c in enumerate(a_labels) if i not in (*a_sum, *a_batch)),
        *(c for j, c in enumerate(b_labels) if j not in (*b_sum, *b_batch)),
    ]
    dtype = eqn.outvars[0].aval.dtype
    wide = wide_dtype(dtype)
    if isinstance(b, Factored):
        thin = thin_term(a, a_labels, b, b_labels, out, dtype=wide, precision=_precision(eqn, b))
        operands = [a, b.base]
    else:
        thin = thin_term(b, b_labels, a, a_labels, out, dtype=wide, precision=_precision(eqn, a))
        operands = [a.base, b]
    if thin is None:
        return None
    main = _compat.bind(eqn, *operands, preferred_element_type=wide)[0]
    return [lax.convert_element_type(main + thin, dtype)]


def _precision(eqn: Any, w: Factored) -> Any:
    """The equation's own precision; exact for integers that are carried in float registers."""
    return lax.Precision.HIGHEST if w.lattice is not None else eqn.params["precision"]


def gather(frame: Any, eqn: Any, w: Any, index: Any) -> list[Any] | None:
    """A lookup gathers from base and from each factor, along the axes that each carries."""
    if not isinstance(w, Factored) or isinstance(index, Factored):
        return None
    dn, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    dropped = {*dn.collapsed_slice_dims, *dn.operand_batching_dims}
    kept = [i for i in range(w.ndim) if i not in dropped]
    n_index = index.ndim - 1
    n_out = n_index + len(kept)
    index_labels = [d for d in range(n_out) if d not in dn.offset_dims]
    kept_label = dict(zip(kept, dn.offset_dims, strict=True))

    def part(factor: Any, axes: tuple[int, ...]) -> tuple[Any, list[int]]:
        mine = [i for i in axes if i in kept]
        starts = [i for i in dn.start_index_map if i in axes]
        batching = [i for i in dn.operand_batching_dims if i in axes]
        own_sizes = [*(sizes[i] for i in axes), factor.shape[-1]]
        if not starts and not batching:
            cut = lax.slice(factor, [0] * factor.ndim, own_sizes)
            return cut, [*(kept_label[i] for i in mine), RANK]
        columns = [dn.start_index_map.index(i) for i in starts]
        selected = jnp.stack([index[..., c] for c in columns], -1) if columns else index[..., :0]
        index_batch = [
            dn.start_indices_batching_dims[dn.operand_batching_dims.index(i)] for i in batching
        ]
        numbers = lax.GatherDimensionNumbers(
            offset_dims=tuple(range(n_index, n_index + len(mine) + 1)),
            collapsed_slice_dims=tuple(axes.index(i) for i in dn.collapsed_slice_dims if i in axes),
            start_index_map=tuple(axes.index(i) for i in starts),
            operand_batching_dims=tuple(axes.index(i) for i in batching),
            start_indices_batching_dims=tuple(index_batch),
        )
        looked_up = lax.gather(
            factor, selected, numbers, own_sizes, mode=eqn.params["mode"], fill_value=0
        )
        return looked_up, [*index_labels, *(kept_label[i] for i in mine), RANK]

    left, left_labels = part(w.left, w.axes("left"))
    right, right_labels = part(w.right, w.axes("right"))
    main = _compat.bind(eqn, w.base, index)[0]
    return [_add_product(main, w, left, left_labels, right, right_labels, list(range(n_out)))]


def _add_product(main, w: Factored, left, left_labels, right, right_labels, out) -> Any:
    """main + the elementwise thin term of a lookup, rounded once, clipped if it is int8."""
    wide = wide_dtype(main.dtype)
    left = scale_rank(lax.convert_element_type(left, wide), w.gain)
    if w.lattice is None:
        thin = contract(left, left_labels, right, right_labels, out, dtype=wide)
        return lax.convert_element_type(lax.convert_element_type(main, wide) + thin, main.dtype)
    total = lax.convert_element_type(main, wide)
    for j in range(w.rank):
        a = spread(left[..., j], left_labels[:-1], out)
        b = spread(right[..., j], right_labels[:-1], out)
        total = total + w.lattice.product(a, b, wide)
    return saturate(total, main.dtype)
