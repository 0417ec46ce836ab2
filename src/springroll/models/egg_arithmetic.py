"""The three arithmetics the minGRU runs in: integers, the published integers, and real numbers.

All of them compute in the same units (1.0 is 16 on the integer lattice) and saturate at 127 / 16,
so one architecture, written once, runs in each.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from springroll.quant import fixed_point as fp

Precision: TypeAlias = Literal["int8", "compat", "float32", "bfloat16"]
REAL_LIMIT = fp.LIMIT / fp.ONE
_GATE_OFFSET = fp.LIMIT  # a gate is (f + 127) / 256, the integers' sigmoid


class Arithmetic(NamedTuple):
    """What the architecture asks of numbers. `store` ends a step; sums in between are `wide`."""

    store: Callable[[Array], Array]  # saturate and keep in the storage type
    wide: Callable[[Array], Array]  # a stored value or parameter, ready for sums
    matmul: Callable[[Array, Array], Array]  # x (..., n_in), w (n_out, n_in): saturated, wide
    norm: Callable[[Array, Array], Array]  # x (..., D) stored, weight (D,): stored
    gate: Callable[[Array, Array], Array]  # gate value f, wide v: sigmoid(f) * v, wide
    saturate: Callable[[Array], Array]
    bits: Callable[[Array, Array], Array]  # stored logits (..., V), labels (...): see below
    # `bits`: code length of the labels, the fewer the better; integer arithmetics in fixed point
    # with BITS_SCALE units per bit, real ones in float32 with the same unit.


BITS_SCALE = 256
COMPAT_BITS_SCALE = 16


def arithmetic(precision: Precision) -> Arithmetic:
    """The arithmetic called `precision`."""
    if precision == "int8":
        return _INTEGER
    if precision == "compat":
        return _COMPAT
    return _REAL


def matmul_shift(n_in: int) -> int:
    """log2(16 * int(sqrt(n_in))) for n_in a power of four: brings a product back to sixteenths."""
    return fp.FRACTION_BITS + round(math.log2(math.isqrt(n_in)))


def _matmul(x: Array, w: Array) -> Array:
    """Products scaled by 1 / (16 sqrt(n_in)), saturated."""
    total = fp.dot(x, w)
    root = math.isqrt(w.shape[-1])
    if root**2 == w.shape[-1] and root & (root - 1) == 0:
        return fp.saturate(fp.shift_right(total, matmul_shift(w.shape[-1])))
    scaled = total.astype(jnp.float32) * np.float32(1 / (fp.ONE * math.sqrt(w.shape[-1])))
    return fp.saturate(fp.wide(jnp.rint(scaled)))


def _norm(x: Array, weight: Array) -> Array:
    """x * weight / mean|x| through a 16-bit reciprocal; the mean counts as at least one step.

    x * weight is below 2**14 and the reciprocal at most 2**16, so the product fits int32.
    """
    total = jnp.sum(jnp.abs(fp.wide(x)), axis=-1, keepdims=True)
    count = x.shape[-1]
    inverse = ((1 << 16) * count) // jnp.maximum(total, count)
    scaled = fp.wide(x) * fp.wide(weight) * lax.optimization_barrier(inverse)
    return fp.store(fp.shift_right(scaled, 16))


def _gate(f: Array, v: Array) -> Array:
    return fp.shift_right((fp.wide(f) + _GATE_OFFSET) * v, 8)


def _exp2_fixed(y: Array) -> Array:
    """64 * 2**(y / 16) for integers y >= 0 to within 2e-4, without a table.

    y >> 4 is the exponent of a float32, a cubic of y & 15 its mantissa 2**23 (2**(j / 16) - 1).
    Every step is an integer one, so the bits are the same everywhere.
    """
    j = y & 15
    mantissa = ((155 * j + 7510) * j + 364294) * j
    power = lax.bitcast_convert_type((((y >> 4) + 127) << 23) + mantissa, jnp.float32)
    return fp.wide(power * 64)


def _log2_fixed(s: Array) -> Array:
    """256 * log2(s) for int32 s >= 1, to within one unit, in integers.

    log2(1 + f) is f + f (1 - f) (0.4209 - 0.1564 f) to within 1.1e-3, here with 12 bits of f.
    """
    exponent = 31 - lax.clz(s)
    f = ((s << (31 - exponent)) >> 19) & 0xFFF
    bend = (f * (4096 - f)) >> 12
    fraction = f + ((bend * (1724 - ((641 * f) >> 12))) >> 12)
    return (exponent << 8) + ((fraction + 8) >> 4)


def _bits(logits: Array, labels: Array) -> Array:
    y = fp.wide(logits)
    total = jnp.sum(_exp2_fixed(y + fp.LIMIT + 1), axis=-1)
    chosen = jnp.take_along_axis(y, labels[..., None], axis=-1)[..., 0] + fp.LIMIT + 1
    return _log2_fixed(total) - 6 * BITS_SCALE - chosen * (BITS_SCALE // fp.ONE)


_INTEGER = Arithmetic(
    store=fp.store,
    wide=fp.wide,
    matmul=_matmul,
    norm=_norm,
    gate=_gate,
    saturate=fp.saturate,
    bits=_bits,
)


# --- the published integers: floors, a raw mean, tables of whole sixteenths -----------------------


def _compat_matmul(x: Array, w: Array) -> Array:
    divisor = fp.ONE * math.isqrt(w.shape[-1])
    return fp.saturate(fp.dot(x, w) // divisor)


def _compat_norm(x: Array, weight: Array) -> Array:
    """floor(x * weight / mean); where the mean is 0 the published lookup's -2, or -1 for a 0."""
    mean = jnp.sum(jnp.abs(fp.wide(x)), axis=-1, keepdims=True)
    mean = jnp.maximum(mean, 1) // x.shape[-1]
    product = fp.wide(x) * fp.wide(weight)
    quotient = floor_quotient(product, jnp.maximum(mean, 1))
    return fp.store(jnp.where(mean > 0, quotient, jnp.where(product == 0, -1, -2)))


def floor_quotient(product: Array, mean: Array) -> Array:
    """product // mean for |product| < 2**14 and mean from 1 to 127, by a float32 reciprocal."""
    inverse = 1.0 / mean.astype(jnp.float32)
    return fp.wide(jnp.floor((product.astype(jnp.float32) + 0.5) * inverse))


def _compat_gate(f: Array, v: Array) -> Array:
    return ((fp.wide(f) + _GATE_OFFSET) * v) >> 8


def _compat_bits(logits: Array, labels: Array) -> Array:
    """LOG2[sum EXP2[y] - 1] - y[label], in sixteenths of a bit.

    EXP2[i] = int(16 2**(i / 16)), LOG2[i] = int(16 log2((i + 1) / 16)). The published table of
    2**28 logarithms is a search among 256 thresholds: sums start at 4,096.
    """
    y = fp.wide(logits) + fp.LIMIT + 1
    total = jnp.sum(jnp.asarray(_EXP2)[y], axis=-1)
    return published_log2(total) - jnp.take_along_axis(y, labels[..., None], axis=-1)[..., 0]


def published_log2(total: Array) -> Array:
    """int(16 log2(total / 16)) of int32 totals from 4096 to 2**28."""
    steps = jnp.searchsorted(jnp.asarray(_LOG2_FROM), total, side="right")
    return _LOG2_LOWEST + steps.astype(jnp.int32)


_EXP2 = np.array([int(16 * 2 ** (i / 16)) for i in range(256)], np.int32)
_LOG2_LOWEST = 128  # of 256 times EXP2[0]
_LOG2_FROM = np.array([math.ceil(16 * 2 ** (k / 16)) for k in range(129, 385)], np.int32)

_COMPAT = Arithmetic(
    store=fp.store,
    wide=fp.wide,
    matmul=_compat_matmul,
    norm=_compat_norm,
    gate=_compat_gate,
    saturate=fp.saturate,
    bits=_compat_bits,
)


# --- real numbers: the same architecture, float32 or bfloat16 -------------------------------------


def _real_store(x: Array) -> Array:
    return jnp.clip(x, -REAL_LIMIT, REAL_LIMIT)


def _real_matmul(x: Array, w: Array) -> Array:
    """x @ w.T / sqrt(n_in), summed in float32."""
    dims = (((x.ndim - 1,), (1,)), ((), ()))
    total = lax.dot_general(x.astype(w.dtype), w, dims, preferred_element_type=jnp.float32)
    return _real_store(total * np.float32(1 / math.sqrt(w.shape[-1])))


def _real_norm(x: Array, weight: Array) -> Array:
    mean = jnp.mean(jnp.abs(x), axis=-1, keepdims=True)
    return _real_store(x * weight.astype(jnp.float32) / jnp.maximum(mean, 1 / fp.ONE))


def _real_gate(f: Array, v: Array) -> Array:
    return (f + _GATE_OFFSET / fp.ONE) * (fp.ONE / 256) * v


def _real_bits(logits: Array, labels: Array) -> Array:
    """Bits of the labels where the probability of a byte is proportional to 2**logit."""
    nats = logits * np.float32(math.log(2))
    chosen = jnp.take_along_axis(nats, labels[..., None], axis=-1)[..., 0]
    total = jax.nn.logsumexp(nats, axis=-1)
    return (total - chosen) * np.float32(BITS_SCALE / math.log(2))


_REAL = Arithmetic(
    store=_real_store,
    wide=lambda x: x.astype(jnp.float32),
    matmul=_real_matmul,
    norm=_real_norm,
    gate=_real_gate,
    saturate=_real_store,
    bits=_real_bits,
)
