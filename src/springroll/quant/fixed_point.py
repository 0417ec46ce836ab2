"""Integer arithmetic in sixteenths: what a pure-int8 network computes with.

A value v stands for v / 16 and lives in int8, -127 to 127. Products and sums are int32. Everything
here is plain JAX on plain arrays: it knows nothing of training.

Two rules of rounding share the same functions. `nearest` rounds half away from zero, so that
round(-x) = -round(x) and an antithetic pair of members stays symmetric. `floor` is the arithmetic
shift of the published model (arXiv 2511.16652, App. G), which pulls every product half a step down.
"""

from typing import Literal, TypeAlias

import jax.numpy as jnp
from jax import Array, lax

Rounding: TypeAlias = Literal["nearest", "floor"]
Registers: TypeAlias = Literal["int8", "float32"]

FRACTION_BITS = 4
ONE = 1 << FRACTION_BITS
LIMIT = 127


def saturate(x: Array) -> Array:
    """Clip to -127..127, never -128, so that negation never overflows."""
    return jnp.clip(x, -LIMIT, LIMIT)


def store(x: Array) -> Array:
    """Saturate and keep as int8.

    The barrier makes the compiler write the bytes once. Without it XLA on a CPU repeats the whole
    chain of operations behind x in every place that reads it, which costs a factor of 4.
    """
    return lax.optimization_barrier(saturate(x).astype(jnp.int8))


def wide(x: Array) -> Array:
    """int32, for sums and products."""
    return x.astype(jnp.int32)


def shift_right(x: Array, bits: int, rounding: Rounding = "nearest") -> Array:
    """x / 2**bits for int32 x; |x| + 2**(bits - 1) must stay below 2**31."""
    if bits == 0:
        return x
    if rounding == "floor":
        return x >> bits
    return (x + (1 << (bits - 1)) + (x >> 31)) >> bits


def dot(x: Array, w: Array) -> Array:
    """x (..., n_in) int8 times w (n_out, n_in) -> (..., n_out) int32, exact.

    `w` is int8, or the same integers held in float32: a CPU without int8 matrix instructions
    multiplies floats five times faster, and sums of at most 1,040 products of int8 are exact there.
    """
    x = x if x.dtype == w.dtype else x.astype(w.dtype)
    kind = jnp.int32 if jnp.issubdtype(w.dtype, jnp.integer) else jnp.float32
    dims = (((x.ndim - 1,), (1,)), ((), ()))
    return wide(lax.dot_general(x, w, dims, preferred_element_type=kind))


def in_fastest_registers(w: Array, registers: Registers) -> Array:
    """`w` (n_out, n_in) int8 as `dot` wants it: as it is, or in float32 where sums stay exact."""
    exact = w.shape[-1] * LIMIT**2 < 1 << 24
    return w.astype(jnp.float32) if registers == "float32" and exact else w
