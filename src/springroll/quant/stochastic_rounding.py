"""Rounding float32 to bfloat16 so that the expected value is the input.

Plain rounding loses every update below half a unit in the last place; with a random threshold a
small update survives with the right probability, and no float32 copy of the weights is needed.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from springroll.errors import InputError


def round_stochastically(x: Array, bits: Array) -> Array:
    """A bfloat16 neighbour of `x`: the upper with probability (x - lower) / (upper - lower).

    `bits` are uniform uint32 in the shape of `x`, of which 16 are used. Exact values, infinities
    and NaN stay as they are. Raises InputError if `x` is not float32.
    """
    if x.dtype != jnp.float32:
        raise InputError(f"stochastic rounding of {x.dtype}; expected float32")
    word = lax.bitcast_convert_type(x, jnp.uint32)
    moved = (word + (bits & np.uint32(0xFFFF))) & np.uint32(0xFFFF0000)
    rounded = lax.bitcast_convert_type(moved, jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)
