"""Convolutions with low-rank kernels: `conv_general_dilated`."""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend import core as jex
from jax.typing import DTypeLike

from springroll import compat
from springroll.thin.axis_trace import AxisTrace, Refs, used_up
from springroll.thin.factored_array import Factored, cast, scale_rank, wide_dtype
from springroll.thin.interpreter import Frame, Operand, Outputs
from springroll.thin.thin_term import RANK, Options, contract, same_dtype

WIDEST = 4  # taps * rank may be this many times the input channels


def conv_general_dilated(frame: Frame, eqn: jex.JaxprEqn, x: Operand, w: Factored) -> Outputs:
    """x * base plus x * kernel, the kernel having the rank as output features, times the rest.

    Needs one letter on the kernel's output-feature axis and the other on all its other axes.
    """
    p = eqn.params
    if isinstance(x, Factored) or p["feature_group_count"] != 1 or p["batch_group_count"] != 1:
        return None
    features, channel = p["dimension_numbers"].rhs_spec[0], p["dimension_numbers"].out_spec[1]
    own = w.roles[features]
    others = {role for i, role in enumerate(w.roles) if i != features}
    if w.lattice is not None or {own} | others != {"m", "n"} or own in others:
        return None
    kernel, last = (w.left, w.right) if own == "n" else (w.right, w.left)
    dtype = compat.dtype_of(eqn.outvars[0])
    wide = wide_dtype(dtype)
    t = _with_kernel(eqn, x, kernel, features, wide)
    t = scale_rank(jnp.moveaxis(t, channel, -1), w.gain)
    labels = list(range(t.ndim - 1))
    output = t.ndim
    options: Options = {"dtype": wide, "precision": p["precision"]}
    term = contract(t, [*labels, RANK], last, [output, RANK], [*labels, output], **options)
    main = compat.bind(eqn, *same_dtype(x, w.base), preferred_element_type=wide)[0]
    return [cast(main + jnp.moveaxis(term, -1, channel), dtype)]


def conv_flow(trace: AxisTrace, eqn: jex.JaxprEqn, refs: list[Refs]) -> list[Refs]:
    p = eqn.params
    if refs[0] or p["feature_group_count"] != 1 or p["batch_group_count"] != 1:
        return used_up(trace, eqn, refs)
    trace.use(eqn, refs[1], summed=p["dimension_numbers"].rhs_spec[1:], activation=eqn.invars[0])
    return [()]


def _with_kernel(
    eqn: jex.JaxprEqn, x: Array, kernel: Array, features: int, wide: DTypeLike
) -> Array:
    """The convolution of x with a factor whose rank plays the output features.

    A kernel per population member would make XLA split the convolution into groups, which is slow.
    So x meets the factor point by point, one output per tap and rank component, and a convolution
    with a constant kernel of zeros and ones, the same for everybody, shifts and adds the taps.
    """
    rhs, lhs = eqn.params["dimension_numbers"].rhs_spec, eqn.params["dimension_numbers"].lhs_spec
    kernel = jnp.moveaxis(kernel, -1, features)
    kernel = lax.transpose(kernel, (*rhs[1:], rhs[0]))  # (inputs, *taps, rank)
    inputs, *taps, rank = kernel.shape
    width = math.prod(taps) * rank
    if width > WIDEST * inputs:
        kernel = jnp.moveaxis(kernel, range(len(rhs)), (*rhs[1:], rhs[0]))
        return compat.bind(eqn, *same_dtype(x, kernel), preferred_element_type=wide)[0]
    labels = list(range(x.ndim))
    out = [x.ndim if i == lhs[1] else c for i, c in enumerate(labels)]
    flat = lax.reshape(kernel, (inputs, width))
    precision = eqn.params["precision"]
    y = contract(x, labels, flat, [lhs[1], x.ndim], out, dtype=wide, precision=precision)
    shifts = jnp.asarray(_shifts(taps, rank, rhs), wide)
    return compat.bind(eqn, y, shifts, preferred_element_type=wide)[0]


def _shifts(taps: list[int], rank: int, rhs: tuple[int, ...]) -> np.ndarray:
    """The kernel that moves channel (tap, j) to output j, displaced by the tap."""
    kernel = np.zeros((rank, math.prod(taps) * rank, *taps))
    for flat, tap in enumerate(np.ndindex(*taps)):
        for j in range(rank):
            kernel[(j, flat * rank + j, *tap)] = 1
    return np.moveaxis(kernel, range(len(rhs)), rhs)
