"""Weights in bfloat16 that lose nothing: float32 = bfloat16 high half + int16 low half.

The bits of a float32 are a 32-bit word; its upper half is a bfloat16. With the low half read as a
signed number,

    word = 65536 high + low,  -32768 <= low < 32768

`high` is the bfloat16 nearest to the weight (truncation would be up to a whole unit off, always
towards zero, and the forward pass would see it), and `low` is what is missing, exactly. A tie goes
away from zero, the one direction for which `low` fits. Four bytes per weight, as float32 alone,
where a bfloat16 copy beside a float32 master takes six.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from springroll.errors import InputError
from springroll.quant.transformation import check_types_kept, transformation, wrapped
from springroll.trees import PyTree, check_arrays

_QUIET_NAN = np.uint32(0x7FC00000)


def split(x: Array) -> tuple[Array, Array]:
    """float32 -> (bfloat16 nearest to it, int16 rest); see `join`.

    Exact for every finite number, subnormal ones and both zeros, and for infinities. Numbers that
    lie above the largest bfloat16 by half a unit or more have an infinite high half, as in any
    cast, and still come back exactly. NaN stays NaN, its payload is lost.

    Args:
        x: (...) float32.

    Returns:
        high (...) bfloat16 and low (...) int16.

    Raises:
        InputError: `x` is not float32.
    """
    if x.dtype != jnp.float32:
        raise InputError(f"split of {x.dtype}; expected float32")
    word = lax.bitcast_convert_type(x, jnp.uint32)
    nan = (word & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    word = jnp.where(nan, _QUIET_NAN, word)
    high = ((word + np.uint32(0x8000)) >> np.uint32(16)).astype(jnp.uint16)
    low = word.astype(jnp.uint16)  # the lower 16 bits
    return lax.bitcast_convert_type(high, jnp.bfloat16), lax.bitcast_convert_type(low, jnp.int16)


def split_on_host(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`split` in NumPy, the same bits: nothing is compiled for the shape."""
    word = np.ascontiguousarray(x, np.float32).view(np.uint32)
    nan = (word & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    if nan.any():
        word = np.where(nan, _QUIET_NAN, word)
    high = ((word + np.uint32(0x8000)) >> np.uint32(16)).astype(np.uint16)
    return high.view(jnp.bfloat16), word.astype(np.uint16).view(np.int16)


def join(high: Array, low: Array) -> Array:
    """The float32 (...) that was split into high (...) bfloat16 and low (...) int16."""
    upper = lax.bitcast_convert_type(high, jnp.uint16).astype(jnp.uint32) << np.uint32(16)
    signed = low.astype(jnp.int32)
    return lax.bitcast_convert_type(
        upper + lax.bitcast_convert_type(signed, jnp.uint32), jnp.float32
    )


def high_half(params: PyTree) -> PyTree:
    """The bfloat16 weights to train, of a tree of float32 weights; other leaves stay.

    Raises:
        InputError: a leaf is no array.
    """
    check_arrays(params)
    return jax.tree.map(
        lambda p: split(jnp.asarray(p))[0] if jnp.result_type(p) == jnp.float32 else p, params
    )


class SplitMasterState(NamedTuple):
    """low: int16 beside each bfloat16 weight, None elsewhere; inner_state: in float32."""

    low: PyTree
    inner_state: PyTree


def with_split_master(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Train bfloat16 weights without rounding loss: `inner` updates an exact float32 master.

    The parameters are the high halves of the float32 weights; the low halves are in the state.

        tx = with_split_master(optax.adamw(1e-3))
        state = tx.init(params)              # float32 weights: their low halves go to the state
        params = high_half(params)           # bfloat16: what the model computes with
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)

    `inner` sees float32 gradients and weights, and the trajectory of (high, low) is bit for bit the
    one it would have in float32. The updates are the float32 differences of the old and new high
    halves, so that `optax.apply_updates` arrives at the new one exactly. One case cannot be
    expressed so: a weight that falls to less than 2^-23 of itself in one step. Its master then
    takes the value that bfloat16 arrives at: an error of the order of float32's own at the weight
    it had before. Leaves of `params` that are not bfloat16 pass through unchanged.

    `init` takes bfloat16 weights as well; their low halves are zero then.

    Args:
        inner: any transformation; it sees float32 alone.

    Returns:
        A transformation with the state `SplitMasterState(low, inner_state)`.

    Raises:
        InputError: `update` is called without the weights; it has bfloat16 gradients inside of
            `optax.apply_if_finite`, whose branches must have the type of the gradients.
    """
    inner = wrapped(inner, "with_split_master")

    def init(params: PyTree) -> SplitMasterState:
        return SplitMasterState(jax.tree.map(_low, params), inner.init(as_float32(params)))

    def update(
        updates: PyTree, state: PyTree, params: PyTree | None = None, **extra: PyTree
    ) -> tuple[PyTree, SplitMasterState]:
        params = required(params, "with_split_master")
        full = jax.tree.map(_joined, params, state.low)
        with jax.numpy_dtype_promotion("standard"):  # optimizers need not be strict
            steps, inner_state = inner.update(as_float32(updates), state.inner_state, full, **extra)
        tree = jax.tree.structure(params)
        columns = [tree.flatten_up_to(x) for x in (params, full, state.low, steps)]
        moved = [_moved(*leaf) for leaf in zip(*columns, strict=True)]
        changes, low = (tree.unflatten([pair[i] for pair in moved]) for i in (0, 1))
        check_types_kept(updates, changes, "with_split_master")
        return changes, SplitMasterState(low, inner_state)

    return transformation(init, update)


def as_float32(tree: PyTree) -> PyTree:
    """bfloat16 leaves in float32, others as they are."""
    wide = lambda x: x.astype(jnp.float32) if jnp.result_type(x) == jnp.bfloat16 else x
    return jax.tree.map(wide, tree)


def required(params: PyTree | None, who: str) -> PyTree:
    """`params`, which an optimizer loop may have left out."""
    if params is None:
        raise InputError(f"{who} needs the weights: call update(grads, state, params)")
    return params


def _low(p: Array) -> Array | None:
    if p.dtype == jnp.float32:
        return split(p)[1]
    return jnp.zeros(p.shape, jnp.int16) if p.dtype == jnp.bfloat16 else None


def _joined(p: Array, low: Array | None) -> Array:
    return join(p, low) if p.dtype == jnp.bfloat16 and low is not None else p


def _moved(p: Array, full: Array, low: Array | None, step: Array) -> tuple[Array, Array | None]:
    if p.dtype != jnp.bfloat16:
        return step, low
    high, rest = split(full + step.astype(jnp.float32))
    change = high.astype(jnp.float32) - p.astype(jnp.float32)
    arrives = (p.astype(jnp.float32) + change).astype(jnp.bfloat16)
    same = lax.bitcast_convert_type(arrives, jnp.uint16) == lax.bitcast_convert_type(
        high, jnp.uint16
    )
    return change, jnp.where(same, rest, np.int16(0))
