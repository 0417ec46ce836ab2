"""A layer taken in slices of its width or of its time, so that one slice of it exists at a time.

Both halves of a transformer layer are sums over independent parts: attention over groups of heads,
the feed-forward half over its hidden units. Where a layer's inner activations would be many, as
with long texts, the parts are computed one after the other, and again for the gradient. Every
weight belongs to one slice, so that its gradient is still one product.

A recurrent layer reads a long text in segments instead, each from the state after the one before.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

from springroll import compat
from springroll.quant.int8_weights import Int8
from springroll.quant.nf4_weights import BLOCK, Nf4, in_blocks_of
from springroll.thin.factored_array import Factored
from springroll.trees import Params, PyTree

Coded: TypeAlias = Int8 | Nf4

WIDE = 1 << 28  # numbers of a layer's inner activations above which they are sliced
KEPT = "kept"  # name of what a slice keeps for its gradient


def slices_for(tokens: int, width: int, parts: int) -> int:
    """How many slices of an inner width so many tokens need: a divisor of the `parts` it has."""
    least = -(-tokens * width // WIDE)
    return next((n for n in range(least, parts) if parts % n == 0), parts)


def segment_size(rows: int, width: int, multiple: int) -> int:
    """How many positions of so many rows an inner width is computed for at once, a multiple of
    `multiple`."""
    return multiple * max(1, WIDE // (rows * width * multiple))


def parts_of(w: Array | Coded | Factored) -> tuple[int, int]:
    """The inputs of a weight (out, in), and into how many equal parts they can be cut."""
    if isinstance(w, Factored):
        return parts_of(w.base)
    if isinstance(w, Nf4):
        share = math.gcd(w.inputs, BLOCK)
        return w.inputs, w.inputs // share if share > 1 else 1  # two numbers share a byte
    inputs = (w.values if isinstance(w, Int8) else w).shape[-1]
    return inputs, inputs


def sliced(x: Array | Coded | Factored, count: int, axis: int) -> PyTree:
    """x cut into `count` equal slices along an axis: (count, ...).

    Of a coded weight (out, in), or of a `Factored` one, what all slices share is repeated.
    """
    rows = lambda part, own: sliced(part, count, 0) if axis == own else jnp.stack([part] * count)
    if isinstance(x, Factored):
        base = sliced(x.base, count, axis)
        return replace(x, base=base, left=rows(x.left, 0), right=rows(x.right, 1))
    if isinstance(x, Int8):
        return Int8(sliced(x.values, count, axis), rows(x.scale, 0))
    if isinstance(x, Nf4):
        inputs = x.inputs // count if axis == 1 else x.inputs
        x = in_blocks_of(x, math.gcd(inputs, BLOCK)) if axis == 1 else x
        return Nf4(sliced(x.codes, count, axis), sliced(x.scale, count, axis), inputs)
    shape = (*x.shape[:axis], count, x.shape[axis] // count, *x.shape[axis + 1 :])
    return jnp.moveaxis(x.reshape(shape), axis, 0)


def summed_slices(part: Callable[[Params, Array], Array], slices: PyTree, x: Array) -> Array:
    """The sum of part(slices[i], x) over i, in float32, in the type of x.

    For the gradient a part is computed again, but for what it names `KEPT`.
    """

    def step(total: Array, one: Params) -> tuple[Array, None]:
        return total + part(one, x).astype(jnp.float32), None

    keep = jax.checkpoint_policies.save_only_these_names(KEPT)
    step = jax.checkpoint(step, prevent_cse=False, policy=keep)
    zero = compat.vary_as(jnp.zeros(x.shape, jnp.float32), x, *jax.tree.leaves(slices))
    return lax.scan(step, zero, slices)[0].astype(x.dtype)


def in_segments(
    step: Callable[[Params, PyTree, PyTree], tuple[PyTree, PyTree]],
    weights: Params,
    state: PyTree,
    inputs: PyTree,
    size: int,
) -> tuple[PyTree, PyTree]:
    """(state after the last, outputs) of step(weights, state, inputs) -> (state, outputs) over
    segments of `size` positions; inputs and outputs are (batch, time, ...).

    For the gradient a segment is computed again, and gradients of short weights are summed in
    float32.
    """
    short = lambda w: w.dtype in (jnp.bfloat16, jnp.float16)
    wide = jax.tree.map(lambda w: w.astype(jnp.float32) if short(w) else w, weights)

    def segment(state: PyTree, inputs: PyTree) -> tuple[PyTree, PyTree]:
        narrow = jax.tree.map(lambda w, own: w.astype(own.dtype), wide, weights)
        return step(narrow, state, inputs)

    segment = jax.checkpoint(segment, prevent_cse=False)
    time = jax.tree.leaves(inputs)[0].shape[1]
    end = time - time % size

    def cut(x: Array) -> Array:
        """(batch, time, ...) -> (segments, batch, size, ...), without what is left at the end."""
        x = x[:, :end]
        return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)

    def joined(y: Array) -> Array:
        y = jnp.moveaxis(y, 0, 1)
        return y.reshape(y.shape[0], -1, *y.shape[3:])

    state, outputs = lax.scan(segment, state, jax.tree.map(cut, inputs))
    outputs = jax.tree.map(joined, outputs)
    if end < time:
        state, rest = segment(state, jax.tree.map(lambda x: x[:, end:], inputs))
        outputs = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), outputs, rest)
    return state, outputs


def kept(x: Array) -> Array:
    """x, which is not computed again for the gradient of a slice."""
    return checkpoint_name(x, KEPT)
