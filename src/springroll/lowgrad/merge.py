"""W <- W + P S, the one moment at which a weight changes.

float32 is exact (one rounding of the sum). bfloat16 and int8 are rounded at random, so that what
one period moved survives on average, however little it is.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from springroll.errors import InputError
from springroll.factored.factored import Factored
from springroll.quant.stochastic_rounding import round_stochastically


def merged(weight: Factored, key: Array) -> Array:
    """The dense weight in the type of its base; short types are rounded at random."""
    if weight.dtype == jnp.float32:
        return weight.dense()
    exact = weight.dense(jnp.float32)
    if weight.dtype == jnp.bfloat16:
        return round_stochastically(exact, jax.random.bits(key, exact.shape, jnp.uint32))
    if weight.dtype == jnp.int8:
        up = jax.random.uniform(key, exact.shape)
        return jnp.clip(jnp.floor(exact + up), -127, 127).astype(jnp.int8)
    raise InputError(
        f"{weight.path or 'a weight'} is {weight.dtype}; weights in a subspace are float32,"
        " bfloat16 or int8."
    )
