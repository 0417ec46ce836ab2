"""Weights in int8 with a scale per output channel, and the rest that rounding leaves in another.

    W[o, i] = scale[o] * values[o, i],     scale[o] = max_i |W[o, i]| / 127

Every weight is off by half a step at most, so that a product with x is off by at most
`scale[o] / 2 * sum_i |x[i]|`. The model reads one byte per weight.

Steps of training are much smaller than a step of the grid. What rounding leaves is kept beside the
values and added back before the next step (error feedback): in `values_and_residual` the two are
the high and the low part of one number whose last bit is rounded at random. A residual of 8 bits
makes it 1/256 of a step fine, one of 4 bits, of which a byte holds two, 1/16.

That rounding adds a variance of at most 1/4 fine step squared to every weight and update. It
matters where an update moves a weight by less than a fine step.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from springroll.errors import InputError, check_takes
from springroll.trees import PyTree, map_named

Select: TypeAlias = Callable[[str, Array | jax.ShapeDtypeStruct], bool]
LARGEST = 127  # -128 is not used
BITS = 8  # of a residual; 4 is the other choice
FINE = 1 << BITS  # steps of such a residual in a step of the values
_TINY = np.float32(2.0**-96)  # rows below count as zero: their scale would not be a normal number


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8:
    """A matrix, or a stack of them: scale[..., None] * values. See `int8_of` and `real`.

    A pytree node; a tree of the same structure may hold something else in these places.

    Args:
        values: (..., out, in) int8, -127 to 127.
        scale: (..., out) float32, above 0.
    """

    codes_of_floats: ClassVar[bool] = True  # for `sr.discover`: they are evolved like floats

    values: Array
    scale: Array


def is_int8(x: PyTree) -> bool:
    return isinstance(x, Int8)


def int8_of(w: Array) -> Int8:
    """The nearest numbers on the grid of each output channel; `w` (..., out, in) of any float type.

    A channel of zeros has no size: it gets the mean scale of its matrix, and if that is zero too
    that of weights up to 1 / sqrt(in), so that it can still be trained.
    """
    w = w.astype(jnp.float32)
    largest = jnp.abs(w).max(-1)
    nonzero = largest > _TINY
    mean = jnp.where(nonzero, largest, 0).mean(-1, keepdims=True)
    fresh = np.float32(w.shape[-1] ** -0.5)
    largest = jnp.where(nonzero, largest, jnp.where(mean > _TINY, mean, fresh))
    scale = largest / np.float32(LARGEST)
    return Int8(nearest(w / scale[..., None]), scale)


def real(w: Int8, residual: Array | None = None) -> Array:
    """The float32 weights; with `residual`, as `values_and_residual` gives it, if given."""
    steps = w.values.astype(jnp.float32)
    if residual is not None:
        fine = np.float32(1 / (1 << bits_of(residual)))
        steps = steps + unpacked(residual, w.values.shape[-1]).astype(jnp.float32) * fine
    return steps * w.scale[..., None]


def no_residual(values: Array, bits: int = BITS) -> Array:
    """Residuals of 0: (..., in) int8, or with 4 bits (..., ceil(in / 2)) uint8."""
    return packed(jnp.zeros_like(values), bits)


def bits_of(residual: Array) -> int:
    """8 or 4: of a number in residuals of this type."""
    return 4 if residual.dtype == jnp.uint8 else 8


def packed(residual: Array, bits: int) -> Array:
    """(..., n) int8 as it is kept: with 4 bits, -8 to 7, (..., ceil(n / 2)) uint8.

    A byte holds number i in its lower half and number i + ceil(n / 2) in its upper one.
    """
    if bits == 8:
        return residual
    half = -(-residual.shape[-1] // 2)
    nibbles = residual.astype(jnp.uint8) & np.uint8(15)
    upper = nibbles[..., half:]
    missing = [(0, 0)] * (upper.ndim - 1) + [(0, half - upper.shape[-1])]
    return nibbles[..., :half] | (jnp.pad(upper, missing) << np.uint8(4))


def unpacked(kept: Array, n: int) -> Array:
    """The residuals (..., n) int8 that `packed` kept."""
    if bits_of(kept) == 8:
        return kept
    signed = lax.bitcast_convert_type(kept, jnp.int8)
    lower = lax.shift_right_arithmetic(signed << np.int8(4), np.int8(4))
    upper = lax.shift_right_arithmetic(signed, np.int8(4))
    return jnp.concatenate([lower, upper[..., : n - kept.shape[-1]]], -1)


def nearest(steps: Array) -> Array:
    """The nearest of -127 ... 127, int8. NaN becomes 0."""
    return jnp.clip(jnp.round(steps), -LARGEST, LARGEST).astype(jnp.int8)


def values_and_residual(steps: Array, random: Array, bits: int = BITS) -> tuple[Array, Array]:
    """(values, residual), both int8: `steps` float32 is about values + residual / 2^bits.

    About, since the residual is rounded at random such that `steps` is kept on average; `random` is
    uniform uint32 in the same shape. What is within 2^-15 of a number that can be held is taken for
    it, as float32 knows the largest weights no better: a step of zero moves nothing. The values are
    what `nearest` gives, up to that rounding; beyond the grid, which ends at -127 and 127, the
    weight stays at the end. Residuals of 4 bits are -8 to 7, to be `packed`.
    """
    size = 1 << bits
    fine = steps * np.float32(size)
    on_grid = jnp.abs(fine - jnp.round(fine)) < np.float32(size * 2.0**-15)
    fine = jnp.where(on_grid, jnp.round(fine), rounded(fine, random))
    fine = jnp.clip(fine, -LARGEST * size, LARGEST * size).astype(jnp.int32)
    values = (fine + size // 2) >> bits
    return values.astype(jnp.int8), (fine - values * size).astype(jnp.int8)


def rounded(x: Array, bits: Array) -> Array:
    """One of the integers beside `x` (float32), at random, such that `x` is kept on average."""
    low = jnp.floor(x)
    uniform = (bits >> np.uint32(8)).astype(jnp.float32) * np.float32(2.0**-24)
    return jnp.where(uniform < x - low, low + 1, low)


def in_blocks(path: str, x: Array | jax.ShapeDtypeStruct) -> bool:
    """The default of `quantize_weights`: the matrices of a model's blocks, (layers, out, in).

    Those are what `models.attention.linear` multiplies with. Experts, routers, embeddings, heads,
    vectors and the narrow matrices of RWKV-7, whose outputs are exponents, stay as they are.
    """
    name = path.split("/")[-1]
    chosen = name.endswith("_proj") or name in ("key", "value")
    return path.startswith("layers/") and chosen and x.ndim == 3


def quantize_weights(
    params: PyTree, select: Select = in_blocks, code: Callable[[Array], PyTree] = int8_of
) -> PyTree:
    """`params` with every leaf for which `select(path, leaf)` holds as an `Int8`.

    Args:
        params: a tree of arrays.
        select: whether to hold the leaf (..., out, in) at a path, such as "layers/mlp/up_proj", in
            int8; by default the stacked matrices of a model's blocks.
        code: what makes codes of a leaf; `nf4_weights.nf4_of` takes four bits.

    Raises:
        InputError: nothing is selected, or what is selected is no matrix of floats or holds NaN or
            infinities (unless it is traced).
    """
    check_takes(select, "select", "a path", "a leaf")
    chosen = 0

    def one(path: str, x: Array) -> PyTree:
        nonlocal chosen
        if not select(path, x):
            return x
        chosen += 1
        _check(path, x)
        return code(x)

    quantized = map_named(one, params)
    if not chosen:
        raise InputError(
            "no parameter can be held in codes: expected matrices of a model's layers, such as "
            "layers/mlp/up_proj"
        )
    return quantized


def dequantize_weights(params: PyTree, dtype: DTypeLike = jnp.float32) -> PyTree:
    """`params` with every `Int8` as the floats it stands for, in `dtype`."""
    one = lambda x: real(x).astype(dtype) if is_int8(x) else x
    return jax.tree.map(one, params, is_leaf=is_int8)


def values_only(like: Int8, values: PyTree, nothing: PyTree) -> Int8:
    """`values` in the place of those of `like`, and `nothing` in the place of the scale."""
    return dataclasses.replace(like, values=values, scale=nothing)


def _check(path: str, x: Array) -> None:
    if x.ndim < 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(
            f"{path} is {x.dtype}{list(x.shape)}; coded weights are made of floating matrices "
            "(..., out, in)"
        )
    if not isinstance(x, jax.core.Tracer) and not bool(jnp.isfinite(x).all()):
        raise InputError(
            f"{path} holds NaN or infinite weights; expected finite ones: the checkpoint is damaged"
        )
