"""W <- W + P S, the one moment at which a weight changes.

float32 is exact (one rounding of the sum). bfloat16 and int8 are rounded at random, so that what
one period moved survives on average, however little it is. Stacked weights are written layer by
layer in place: nothing of the size of a stack exists in float32.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array, lax

from springroll.errors import InputError
from springroll.factored.factored import Factored
from springroll.quant.stochastic_rounding import round_stochastically


def merged(weight: Factored, key: Array, layers: Array, count: Array) -> Array:
    """The base of a weight, with the thin term added to the first `count` of `layers`.

    `layers` are indices of the first axis if it is stacked; a single weight has one layer, 0. The
    random bits depend on key and layer alone.
    """
    stacked = weight.roles[0] == "s"

    def one(i: Array, base: Array) -> Array:
        layer = layers[i]
        if not stacked:
            return merged_one(dataclasses.replace(weight, base=base), jax.random.fold_in(key, 0))
        pick = lambda a: lax.dynamic_index_in_dim(a, layer, 0, keepdims=False)
        part = dataclasses.replace(
            weight,
            base=pick(base),
            left=pick(weight.left),
            right=pick(weight.right),
            roles=weight.roles[1:],
        )
        new = merged_one(part, jax.random.fold_in(key, layer))
        return lax.dynamic_update_index_in_dim(base, new, layer, 0)

    return lax.fori_loop(0, count, one, weight.base)


def merged_one(weight: Factored, key: Array) -> Array:
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
