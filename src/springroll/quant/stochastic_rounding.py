"""Rounding float32 to bfloat16 so that the expected value is the input.

Plain rounding loses every update below half a unit in the last place; with a random threshold a
small update survives with the right probability, and no float32 copy of the weights is needed.
"""

import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from springroll.errors import InputError
from springroll.quant.split_master import as_float32, required
from springroll.quant.transformation import check_types_kept, transformation, wrapped
from springroll.trees import KeyPath, PyTree


def round_stochastically(x: Array, bits: Array) -> Array:
    """A bfloat16 neighbour of `x`: the upper with probability (x - lower) / (upper - lower).

    Exact values, infinities and NaN stay as they are.

    Args:
        x: (...) float32.
        bits: (...) uniform uint32, of which 16 are used.

    Returns:
        (...) bfloat16.

    Raises:
        InputError: `x` is not float32.
    """
    if x.dtype != jnp.float32:
        raise InputError(f"stochastic rounding of {x.dtype}; expected float32")
    word = lax.bitcast_convert_type(x, jnp.uint32)
    moved = (word + (bits & np.uint32(0xFFFF))) & np.uint32(0xFFFF0000)
    rounded = lax.bitcast_convert_type(moved, jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)


class StochasticRoundingState(NamedTuple):
    """steps: () uint32, updates done; inner_state: in float32."""

    steps: Array
    inner_state: PyTree


def with_stochastic_rounding(
    inner: optax.GradientTransformation, seed: int = 0
) -> optax.GradientTransformationExtraArgs:
    """Train bfloat16 weights that have no other copy: `inner`'s new weight is rounded at random.

    `inner` sees float32 gradients and weights; the updates are differences of bfloat16 weights, in
    float32, for `optax.apply_updates`. On average a weight moves by exactly what `inner` says. The
    random bits are a function of seed, step and the parameter's path: a resumed run repeats them.
    Leaves of the parameters that are not bfloat16 pass through unchanged.

    Args:
        inner: any transformation; it sees float32 alone.
        seed: of the rounding.

    Returns:
        A transformation with the state `StochasticRoundingState(steps, inner_state)`.

    Raises:
        InputError: `update` is called without the weights; it has bfloat16 gradients inside of
            `optax.apply_if_finite`, whose branches must have the type of the gradients.
    """
    inner = wrapped(inner, "with_stochastic_rounding")

    def init(params: PyTree) -> StochasticRoundingState:
        return StochasticRoundingState(jnp.zeros((), jnp.uint32), inner.init(as_float32(params)))

    def update(
        updates: PyTree,
        state: PyTree,
        params: PyTree | None = None,
        **extra: PyTree,
    ) -> tuple[PyTree, StochasticRoundingState]:
        params = required(params, "with_stochastic_rounding")
        full = as_float32(params)
        with jax.numpy_dtype_promotion("standard"):  # optimizers need not be strict
            steps, inner_state = inner.update(as_float32(updates), state.inner_state, full, **extra)
        key = jax.random.fold_in(jax.random.key(seed), state.steps)

        def moved(path: KeyPath, p: Array, full: Array, step: Array) -> Array:
            if p.dtype != jnp.bfloat16:
                return step
            mine = jax.random.fold_in(key, zlib.crc32(jax.tree_util.keystr(path).encode()))
            bits = jax.random.bits(mine, p.shape, jnp.uint32)
            rounded = round_stochastically(full + step.astype(jnp.float32), bits)
            return rounded.astype(jnp.float32) - full

        changes = jax.tree_util.tree_map_with_path(moved, params, full, steps)
        check_types_kept(updates, changes, "with_stochastic_rounding")
        return changes, StochasticRoundingState(state.steps + np.uint32(1), inner_state)

    return transformation(init, update)
