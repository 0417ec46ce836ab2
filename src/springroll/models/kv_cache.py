"""Keys and values of what rows have read, in a ring that all rows write at the same place.

Letters: L layers, R rows, N key-value heads, H query heads, G = H / N, S slots, T tokens of a
prompt, K width of a head.

Step t writes slot t mod S of every row, which is one slice and done in place. A row that has seen n
tokens sees the n youngest slots. Keys are stored turned by their row's own position, so nothing
depends on which slot they are in: rows of different lengths, or that began at different times,
share the ring as they are. A row may see up to S tokens before its oldest are overwritten.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from springroll.models.attention import MASKED


class Cache(NamedTuple):
    """Keys, turned by their positions, and values: both (L, R, N, S, K)."""

    k: Array
    v: Array


def empty(layers: int, rows: int, heads: int, length: int, width: int, dtype: Any) -> Cache:
    shape = (layers, rows, heads, length, width)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def admit(cache: Cache, found: Cache, rows: Array, clock: Array) -> Cache:
    """Prompts, left-padded (L, prompts, N, T, K), as what the T last steps of `rows` wrote."""
    slots, time = cache.k.shape[3], found.k.shape[3]
    at = (clock - time + jnp.arange(time, dtype=jnp.int32)) % slots

    def put(into: Array, new: Array) -> Array:
        # Indices of rows and slots are apart, so their axes come first.
        new = new.transpose(1, 3, 0, 2, 4)
        return into.at[:, rows[:, None], :, at[None, :]].set(new, mode="drop", unique_indices=True)

    return jax.tree.map(put, cache, found)


def keep(cache: Cache, found: Cache, clock: Array) -> Cache:
    """What a step found, (L, R, N, 1, K), at its slot."""
    put = lambda into, new: lax.dynamic_update_slice_in_dim(into, new, clock, 3)
    return jax.tree.map(put, cache, found)


def ages(slots: int, clock: Array) -> Array:
    """How many steps before the step at `clock` each slot was written, (S,) int32, 1 and up."""
    return (clock - 1 - jnp.arange(slots, dtype=jnp.int32)) % slots + 1


def visible(slots: int, seen: Array, clock: Array, window: Array | None = None) -> Array:
    """Which slots a row's next token sees, (R, S) bool; of `window` tokens one is itself."""
    age = ages(slots, clock)[None, :]
    see = age <= seen[:, None]
    return see if window is None else see & (age < window.reshape(1, 1))


def attend_cached(
    q_RHK: Array,
    new: tuple[Array, Array],
    old: tuple[Array, Array],
    see_RS: Array,
    sinks_H: Array | None = None,
) -> Array:
    """softmax(q k / sqrt(K)) v over the slots that are seen and the new token itself: (R, H, K).

    `new` and `old` are keys and values, (R, N, 1, K) and (R, N, S, K). The memory is only read: the
    new key has its own score, and is written by `keep` after all layers are done.
    """
    rows, heads, width = q_RHK.shape
    q = q_RHK.reshape(rows, new[0].shape[1], -1, width)
    dot = lambda k: jnp.einsum("RNGK,RNSK->RNGS", q, k, preferred_element_type=jnp.float32)
    scale = np.float32(width**-0.5)
    score = jnp.where(see_RS[:, None, None, :], dot(old[0]) * scale, np.float32(MASKED))
    scores = [score, dot(new[0]) * scale]
    if sinks_H is not None:
        sink = sinks_H.astype(jnp.float32).reshape(1, *q.shape[1:3], 1)
        scores.append(jnp.broadcast_to(sink, (*q.shape[:3], 1)))
    weight = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(old[1].dtype)
    slots = see_RS.shape[1]
    sum_ = lambda w, v: jnp.einsum("RNGS,RNSK->RNGK", w, v)
    y = sum_(weight[..., :slots], old[1]) + sum_(weight[..., slots : slots + 1], new[1])
    return y.reshape(rows, heads, width)


def attend_padded(
    q_RTHK: Array,
    k_RTNK: Array,
    v_RTNK: Array,
    lengths: Array,
    window: Array | None = None,
    sinks_H: Array | None = None,
) -> Array:
    """Causal attention within left-padded prompts: (R, T, H, K)."""
    rows, time, heads, width = q_RTHK.shape
    q = q_RTHK.reshape(rows, time, k_RTNK.shape[2], -1, width)
    score = jnp.einsum("RTNGK,RSNK->RNGTS", q, k_RTNK, preferred_element_type=jnp.float32)
    at = jnp.arange(time, dtype=jnp.int32)
    back = at[:, None] - at[None, :]
    near = back >= 0 if window is None else (back >= 0) & (back < window.reshape(1, 1))
    see = near[None] & (at[None, None, :] >= time - lengths[:, None, None])
    score = jnp.where(see[:, None, None], score * np.float32(width**-0.5), np.float32(MASKED))
    if sinks_H is not None:
        sink = sinks_H.astype(jnp.float32).reshape(1, *q.shape[2:4], 1, 1)
        score = jnp.concatenate([score, jnp.broadcast_to(sink, (*score.shape[:-1], 1))], axis=-1)
    weight = jax.nn.softmax(score, axis=-1)[..., :time].astype(v_RTNK.dtype)
    return jnp.einsum("RNGTS,RSNK->RTNGK", weight, v_RTNK).reshape(rows, time, heads, width)
