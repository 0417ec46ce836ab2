"""Causal attention in blocks of queries and keys: memory grows with the time, not with its square.

The softmax over a query's keys is taken block by block with a running maximum and sum (Milakov and
Gimelshein 2018; FlashAttention, Dao et al. 2022). For the gradient the inputs, the output and one
number per query and head are stored, and the scores of a block are computed again. Blocks of keys
that no query of a block sees, as they come later or lie further back than the window, are not
visited: causal attention takes half the products, and a window only its own.

Letters are those of `springroll.models.attention`; C is the size of a block.
"""

import functools
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from springroll import compat
from springroll.models.attention_scores import MASKED, Sight, grouped, scaled, scores, seen
from springroll.models.decoder_config import DecoderConfig
from springroll.models.slices import kept
from springroll.trees import PyTree

Inputs: TypeAlias = tuple[Array, Array, Array, Array | None]  # q, k, v, sinks
Kept: TypeAlias = tuple[Inputs, Sight, Array, Array]  # with output and log of the softmax's sum
Pair: TypeAlias = tuple[Array, Array]
Three: TypeAlias = tuple[Array, Array, Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend_blocks(config: DecoderConfig, size: int, inputs: Inputs, sight: Sight) -> Array:
    """softmax(scores(q k)) v in blocks of `size`: (B, T, H, K).

    `inputs` are q (B, T, H, K), k and v (B, S, N, K), and sinks (H,) or None. The queries are those
    of the last T of S positions.
    """
    return _forward(config, size, inputs, sight)[0]


def _forward(config: DecoderConfig, size: int, inputs: Inputs, sight: Sight) -> tuple[Array, Kept]:
    q, k, v, sinks = inputs
    blocks = _Blocks(sight, size, k.shape[1] - q.shape[1])
    q, k, v = (_padded(x, size) for x in (q, k, v))
    varying = functools.partial(_varying, (inputs, sight))
    batch, time, heads, width = q.shape
    shape = (batch, k.shape[2], heads // k.shape[2], size)
    if sinks is None:
        first = jnp.full(shape, MASKED, jnp.float32), jnp.zeros(shape, jnp.float32)
    else:
        sink = sinks.astype(jnp.float32).reshape(1, *shape[1:3], 1)
        first = jnp.broadcast_to(sink, shape), jnp.ones(shape, jnp.float32)

    def queries(i: Array, made: Pair) -> Pair:
        q_i = _cut(q, i, size)

        def keys(j: Array, carry: Three) -> Three:
            top, total, y = carry
            score = scores(config, q_i, _cut(k, j, size))
            score = jnp.where(blocks.seen(i, j), score, np.float32(MASKED))
            new = jnp.maximum(top, jnp.max(score, axis=-1))
            fade, weight = jnp.exp(top - new), jnp.exp(score - new[..., None])
            add = _dot("BNGTS,BSNK->BNGTK", weight.astype(v.dtype), _cut(v, j, size))
            return new, total * fade + jnp.sum(weight, axis=-1), y * fade[..., None] + add

        start = varying((*first, jnp.zeros((*shape, width), jnp.float32)))
        top, total, y = lax.fori_loop(*blocks.visited(i), keys, start)
        y = jnp.moveaxis(y / total[..., None], 3, 1).reshape(batch, size, heads, width)
        log = jnp.moveaxis(top + jnp.log(total), 3, 1)
        return _put(made[0], y, i, size), _put(made[1], log, i, size)

    empty = jnp.zeros(q.shape, v.dtype), jnp.zeros((batch, time, *shape[1:3]), jnp.float32)
    y, log = lax.fori_loop(0, time // size, queries, varying(empty))
    y, log = kept(y[:, : inputs[0].shape[1]]), kept(log)
    return y, (inputs, sight, y, log)


def _backward(config: DecoderConfig, size: int, saved: Kept, dy: Array) -> tuple[Inputs, None]:
    inputs, sight, y, log = saved
    q, k, v, sinks = inputs
    blocks = _Blocks(sight, size, k.shape[1] - q.shape[1])
    # What all weights of a query have in common: the sum over keys of weight times its gradient.
    mean = _dot("BTHK,BTHK->BTH", y, dy)
    q, k, v, dy, mean = (_padded(x, size) for x in (q, k, v, dy, mean))
    mean = mean.reshape(log.shape)
    varying = functools.partial(_varying, (inputs, sight, dy))

    def queries(i: Array, made: Three) -> Three:
        q_i, dy_i = (grouped(_cut(x, i, size), k.shape[2]) for x in (q, dy))
        log_i, mean_i = (jnp.moveaxis(_cut(x, i, size), 1, 3)[..., None] for x in (log, mean))

        def keys(j: Array, carry: Three) -> Three:
            dq, dk, dv = carry
            k_j, v_j = _cut(k, j, size), _cut(v, j, size)
            product = _dot("BTNGK,BSNK->BNGTS", q_i, k_j)
            score, pull = jax.vjp(functools.partial(scaled, config), product)
            weight = jnp.where(blocks.seen(i, j), jnp.exp(score - log_i), jnp.float32(0))
            (change,) = pull(weight * (_dot("BTNGK,BSNK->BNGTS", dy_i, v_j) - mean_i))
            weight, change = weight.astype(v.dtype), change.astype(q.dtype)
            add = lambda to, x: _put(to, _cut(to, j, size) + x, j, size)
            return (
                dq + _dot("BNGTS,BSNK->BTNGK", change, k_j),
                add(dk, _dot("BNGTS,BTNGK->BSNK", change, q_i)),
                add(dv, _dot("BNGTS,BTNGK->BSNK", weight, dy_i)),
            )

        start = varying((jnp.zeros(q_i.shape, jnp.float32), *made[1:]))
        dq, dk, dv = lax.fori_loop(*blocks.visited(i), keys, start)
        return _put(made[0], dq.reshape(made[0][:, :size].shape), i, size), dk, dv

    wide = lambda x: jnp.zeros(x.shape, jnp.float32)
    start = varying((jnp.zeros_like(q), wide(k), wide(v)))
    made = lax.fori_loop(0, q.shape[1] // size, queries, start)
    dq, dk, dv = (
        dx[:, : x.shape[1]].astype(x.dtype) for dx, x in zip(made, inputs[:3], strict=True)
    )
    if sinks is None:
        return (dq, dk, dv, None), None
    sink = sinks.astype(jnp.float32).reshape(1, 1, *log.shape[2:])
    dsinks = -jnp.sum(jnp.exp(sink - log) * mean, axis=(0, 1))
    return (dq, dk, dv, dsinks.reshape(sinks.shape).astype(sinks.dtype)), None


attend_blocks.defvjp(_forward, _backward)


class _Blocks:
    """Which blocks of keys a block of queries visits, and what it sees of one."""

    def __init__(self, sight: Sight, size: int, before: int):
        self.sight, self.size, self.before = sight, size, before

    def visited(self, i: Array) -> Pair:
        """The first block of keys that block i of queries sees, and the one after the last."""
        first = self.before + i * self.size
        end = (first + self.size - 1) // self.size + 1
        if self.sight.window is None:
            return jnp.zeros_like(end), end
        return jnp.maximum(first + 1 - self.sight.window.reshape(()), 0) // self.size, end

    def seen(self, i: Array, j: Array) -> Array:
        at = lax.iota(jnp.int32, self.size)
        return seen(self.sight, self.before + i * self.size + at, j * self.size + at)


def _dot(subscripts: str, x: Array, y: Array) -> Array:
    return jnp.einsum(subscripts, x, y, preferred_element_type=jnp.float32)


def _padded(x: Array, size: int) -> Array:
    """x with zeros after its end, to a whole number of blocks: no true query sees those keys."""
    return jnp.pad(x, [(0, 0), (0, -x.shape[1] % size)] + [(0, 0)] * (x.ndim - 2))


def _cut(x: Array, i: Array, size: int) -> Array:
    return lax.dynamic_slice_in_dim(x, i * size, size, axis=1)


def _put(x: Array, block: Array, i: Array, size: int) -> Array:
    return lax.dynamic_update_slice_in_dim(x, block.astype(x.dtype), i * size, axis=1)


def _varying(inputs: PyTree, start: PyTree) -> PyTree:
    """First values of a loop, marked as varying along the mesh axes of any input."""
    return jax.tree.map(lambda x: compat.vary_as(x, *jax.tree.leaves(inputs)), start)
