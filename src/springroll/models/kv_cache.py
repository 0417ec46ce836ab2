"""Keys and values of what rows have read, in a ring that all rows write at the same place.

Letters: L layers, R rows, N key-value heads, H query heads, G = H / N, S slots, T tokens of a
prompt, K width of a head.

Step t writes slot t mod S of every row, which is one slice and done in place. A row that has seen n
tokens sees the n youngest slots. Keys are stored turned by their row's own position, so nothing
depends on which slot they are in: rows of different lengths, or that began at different times,
share the ring as they are. A row may see up to S tokens before its oldest are overwritten.
"""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from springroll.models.attention import MASKED, scores
from springroll.models.decoder_config import DecoderConfig
from springroll.models.layers import is_short


class Cache(NamedTuple):
    """Keys, turned by their positions, and values: both (L, R, N, S, K)."""

    k: Array
    v: Array


Layers: TypeAlias = tuple[Cache, ...]  # one by one, L = 1: what a step reads lies in one piece


def empty(layers: int, rows: int, heads: int, length: int, width: int, dtype: DTypeLike) -> Layers:
    """Of rows that have seen nothing."""
    zeros = lambda: jnp.zeros((1, rows, heads, length, width), dtype)
    return tuple(Cache(zeros(), zeros()) for _ in range(layers))


def admit(layers: Layers, entries: Cache, rows: Array, clock: Array) -> Layers:
    """Prompts, left-padded (L, prompts, N, T, K), as what the T last steps of `rows` wrote."""
    slots, time = layers[0].k.shape[3], entries.k.shape[3]
    at = (clock - time + jnp.arange(time, dtype=jnp.int32)) % slots
    where = (slice(None), rows[:, None], slice(None), at[None, :])  # indexed axes come out first

    def put(into: Array, new: Array) -> Array:
        new = new[None].transpose(1, 3, 0, 2, 4)
        if not is_short(into):
            return into.at[where].set(new, mode="drop", unique_indices=True)
        # A CPU would convert all of the memory to float32 and back.
        bits = lambda x: lax.bitcast_convert_type(x, jnp.uint16)
        set_bits = bits(into).at[where].set(bits(new), mode="drop", unique_indices=True)
        return lax.bitcast_convert_type(set_bits, into.dtype)

    return tuple(
        Cache(put(layer.k, entries.k[i]), put(layer.v, entries.v[i]))
        for i, layer in enumerate(layers)
    )


def keep(layers: Layers, entries: Layers, clock: Array) -> Layers:
    """Write the entries of a step, (1, R, N, 1, K) of every layer, at its slot."""
    put = lambda into, new: lax.dynamic_update_slice_in_dim(into, new, clock, 3)
    return jax.tree.map(put, layers, entries)


def after(old_RNSK: Array, new_RTNK: Array, lengths: Array) -> Array:
    """Keys or values of rows that had read S tokens before: (R, S + T, N, K), left-padded.

    The new ones are left-padded: those of row b are its last lengths[b].
    """
    time, known = new_RTNK.shape[1], old_RNSK.shape[2]
    old = jnp.pad(old_RNSK.swapaxes(1, 2), ((0, 0), (time, time), (0, 0), (0, 0)))
    moved = jax.vmap(lambda row, n: lax.dynamic_slice_in_dim(row, n, known + time, 0))(old, lengths)
    new = jnp.pad(new_RTNK, ((0, 0), (known, 0), (0, 0), (0, 0)))
    is_new = jnp.arange(-known - time, 0, dtype=jnp.int32)[None] >= -lengths[:, None]
    return jnp.where(is_new[:, :, None, None], new, moved)


def ages(slots: int, clock: Array) -> Array:
    """How many steps before the step at `clock` each slot was written, (S,) int32, 1 and up."""
    return (clock - 1 - jnp.arange(slots, dtype=jnp.int32)) % slots + 1


def visible(slots: int, seen: Array, clock: Array, window: Array | None = None) -> Array:
    """Which slots a row's next token sees, (R, S) bool; of `window` tokens one is itself."""
    age = ages(slots, clock)[None, :]
    see = age <= seen[:, None]
    return see if window is None else see & (age < window.reshape(1, 1))


def attend_cached(
    config: DecoderConfig,
    q_RHK: Array,
    new: tuple[Array, Array],
    old: tuple[Array, Array],
    see_RS: Array,
    sinks_H: Array | None = None,
) -> Array:
    """softmax(scores(q k)) v over the slots that are seen and the new token itself: (R, H, K).

    `new` and `old` are keys and values, (R, N, 1, K) and (R, N, S, K). The memory is only read: the
    new key's score stands beside the others', and it is written by `keep` after all layers.
    """
    rows, heads, width = q_RHK.shape
    q = q_RHK.reshape(rows, new[0].shape[1], -1, width)
    dot = lambda k: jnp.einsum("RNGK,RNSK->RNGS", q, k, preferred_element_type=jnp.float32)
    score = scores(config, dot(old[0]))
    score = jnp.where(see_RS[:, None, None, :], score, np.float32(MASKED))
    own = scores(config, dot(new[0]))
    top = jnp.maximum(jnp.max(score, axis=-1, keepdims=True), own)
    sink = None
    if sinks_H is not None:
        sink = sinks_H.astype(jnp.float32).reshape(1, *q.shape[1:3], 1)
        top = jnp.maximum(top, sink)
    weight, own = jnp.exp(score - top), jnp.exp(own - top)
    total = jnp.sum(weight, axis=-1, keepdims=True) + own
    if sink is not None:
        total = total + jnp.exp(sink - top)
    share = lambda x: (x / total).astype(old[1].dtype)
    y = jnp.einsum("RNGS,RNSK->RNGK", share(weight), old[1]) + share(own) * new[1]
    return y.reshape(rows, heads, width)


def attend_padded(
    config: DecoderConfig,
    q_RTHK: Array,
    k_RSNK: Array,
    v_RSNK: Array,
    lengths: Array,
    window: Array | None = None,
    sinks_H: Array | None = None,
) -> Array:
    """Causal attention within left-padded prompts, of their last T tokens: (R, T, H, K)."""
    rows, asked, heads, width = q_RTHK.shape
    time = k_RSNK.shape[1]
    q = q_RTHK.reshape(rows, asked, k_RSNK.shape[2], -1, width)
    score = jnp.einsum("RTNGK,RSNK->RNGTS", q, k_RSNK, preferred_element_type=jnp.float32)
    at = jnp.arange(time, dtype=jnp.int32)
    back = at[time - asked :, None] - at[None, :]
    near = back >= 0 if window is None else (back >= 0) & (back < window.reshape(1, 1))
    see = near[None] & (at[None, None, :] >= time - lengths[:, None, None])
    score = jnp.where(see[:, None, None], scores(config, score), np.float32(MASKED))
    if sinks_H is not None:
        sink = sinks_H.astype(jnp.float32).reshape(1, *q.shape[2:4], 1, 1)
        score = jnp.concatenate([score, jnp.broadcast_to(sink, (*score.shape[:-1], 1))], axis=-1)
    weight = jax.nn.softmax(score, axis=-1)[..., :time].astype(v_RSNK.dtype)
    return jnp.einsum("RNGTS,RSNK->RTNGK", weight, v_RSNK).reshape(rows, asked, heads, width)
