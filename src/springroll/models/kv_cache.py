"""Keys and values of what rows have read, in a ring that all rows write at the same place.

Letters: L layers, R rows, N key-value heads, H query heads, G = H / N, S slots, T tokens of a
prompt, K width of a head.

Step t writes slot t mod S of every row, which is one slice and done in place. A row that has seen n
tokens sees the n youngest slots. Keys are stored turned by their row's own position, so nothing
depends on which slot they are in: rows of different lengths, or that began at different times,
share the ring as they are. A row may see up to S tokens before its oldest are overwritten.

On a CPU XLA cannot write one slot of bfloat16: it converts the whole ring to float32 and back. The
last steps there, those since the clock was a multiple of `BLOCK`, are held in float32 apart, and go
to the ring when a block of them is full.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from springroll.models.attention_scores import MASKED, scaled
from springroll.models.decoder_config import DecoderConfig
from springroll.models.layers import as_bits, is_short, of_bits


class Cache(NamedTuple):
    """Keys, turned by their positions, and values: both (L, R, N, S, K)."""

    k: Array
    v: Array


Layers: TypeAlias = tuple[Cache, ...]  # one by one, L = 1: what a step reads lies in one piece

BLOCK = 8  # steps, at most, that are held apart


class Memory(NamedTuple):
    """What rows have read."""

    ring: Layers  # S slots
    block: Layers  # as many slots as a block has steps, in float32; none: all is in the ring

    @property
    def slots(self) -> int:
        """Of the ring."""
        return self.ring[0].k.shape[3]

    @property
    def steps(self) -> int:
        """Of a block; 0: all is in the ring."""
        return self.block[0].k.shape[3] if self.block else 0

    def of_layer(self, i: int) -> list[Cache]:
        """Keys and values of a layer, (R, N, slots, K), in the order of `ages`."""
        parts = [layers[i] for layers in (self.ring, self.block) if layers]
        return [Cache(part.k[0], part.v[0]) for part in parts]


def empty(layers: int, rows: int, heads: int, length: int, width: int, dtype: DTypeLike) -> Memory:
    """Of rows that have seen nothing."""
    zeros = lambda slots, dtype: jnp.zeros((1, rows, heads, slots, width), dtype)
    stack = lambda *of: tuple(Cache(zeros(*of), zeros(*of)) for _ in range(layers))
    ring = stack(length, dtype)
    apart = is_short(ring[0].k)
    return Memory(ring, stack(math.gcd(length, BLOCK), jnp.float32) if apart else ())


def admit(memory: Memory, entries: Cache, rows: Array, clock: Array) -> Memory:
    """Prompts, left-padded (L, prompts, N, T, K), as what the T last steps of `rows` wrote."""
    slots, time = memory.slots, entries.k.shape[3]
    at = (clock - time + jnp.arange(time, dtype=jnp.int32)) % slots
    where = (slice(None), rows[:, None], slice(None), at[None, :])  # indexed axes come out first

    def put(into: Array, new: Array) -> Array:
        new = new[None].transpose(1, 3, 0, 2, 4)
        if not is_short(into):
            return into.at[where].set(new, mode="drop", unique_indices=True)
        bits = as_bits(into).at[where].set(as_bits(new), mode="drop", unique_indices=True)
        return of_bits(bits)

    def put_last(into: Array, new: Array) -> Array:
        """The steps of the block that is under way; those to come are not looked at before."""
        step = jnp.arange(memory.steps, dtype=jnp.int32) - clock % memory.steps
        new = jnp.take(new, time + step, axis=2, mode="clip")
        return into.at[:, rows].set(new[None].astype(into.dtype), mode="drop", unique_indices=True)

    def each(put: Callable[[Array, Array], Array], layers: Layers) -> Layers:
        layer = lambda i: jax.tree.map(lambda x: x[i], entries)
        return tuple(jax.tree.map(put, old, layer(i)) for i, old in enumerate(layers))

    return Memory(each(put, memory.ring), each(put_last, memory.block))


def keep(memory: Memory, entries: Layers, clock: Array) -> Memory:
    """Write the entries of a step, (1, R, N, 1, K) of every layer, at its slot."""
    write = lambda into, new, at: lax.dynamic_update_slice_in_dim(
        into, new.astype(into.dtype), at, 3
    )
    if not memory.block:
        return Memory(
            jax.tree.map(lambda old, new: write(old, new, clock), memory.ring, entries), ()
        )
    at = clock % memory.steps
    block = jax.tree.map(lambda old, new: write(old, new, at), memory.block, entries)
    full = lambda: jax.tree.map(lambda old, new: write(old, new, clock - at), memory.ring, block)
    return Memory(lax.cond(at == memory.steps - 1, full, lambda: memory.ring), block)


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


def ages(memory: Memory, clock: Array) -> Array:
    """How many steps before the one at `clock` each slot was written: those of the ring, 1 and up,
    and then those of the block, below 1 where it is of a step to come; all int32."""
    count = lambda n: jnp.arange(n, dtype=jnp.int32)
    if not memory.block:
        return (clock - 1 - count(memory.slots)) % memory.slots + 1
    apart = clock % memory.steps
    ring = (clock - apart - 1 - count(memory.slots)) % memory.slots + 1 + apart
    return jnp.concatenate([ring, apart - count(memory.steps)])


def visible(age: Array, seen: Array, window: Array | None = None) -> Array:
    """Which slots of such ages a row's next token sees, (R, S) bool; of `window` one is itself."""
    age = age[None, :]
    see = (age > 0) & (age <= seen[:, None])
    return see if window is None else see & (age < window.reshape(1, 1))


def attend_cached(
    config: DecoderConfig,
    q_RHK: Array,
    new: Cache,
    old: Sequence[Cache],
    see_RS: Array,
    sinks_H: Array | None = None,
) -> Array:
    """softmax(scores(q k)) v over the slots that are seen and the new token itself: (R, H, K).

    `new` is (R, N, 1, K) and `old` what is remembered, (R, N, slots, K) each, of S slots in all.
    The memory is only read: the new key's score stands beside the others', and it is written by
    `keep` after all layers.
    """
    rows, heads, width = q_RHK.shape
    q = q_RHK.reshape(rows, new.k.shape[1], -1, width)

    def dot(k: Array) -> Array:
        return jnp.einsum(
            "RNGK,RNSK->RNGS", q.astype(k.dtype), k, preferred_element_type=jnp.float32
        )

    score = scaled(config, jnp.concatenate([dot(cache.k) for cache in old], axis=-1))
    score = jnp.where(see_RS[:, None, None, :], score, np.float32(MASKED))
    own = scaled(config, dot(new.k))
    top = jnp.maximum(jnp.max(score, axis=-1, keepdims=True), own)
    sink = None
    if sinks_H is not None:
        sink = sinks_H.astype(jnp.float32).reshape(1, *q.shape[1:3], 1)
        top = jnp.maximum(top, sink)
    weight, own = jnp.exp(score - top), jnp.exp(own - top)
    total = jnp.sum(weight, axis=-1, keepdims=True) + own
    if sink is not None:
        total = total + jnp.exp(sink - top)
    weight, own = ((x / total).astype(q.dtype) for x in (weight, own))
    ends = list(itertools.accumulate(cache.v.shape[2] for cache in old))
    y = own * new.v
    for share, cache in zip(jnp.split(weight, ends[:-1], axis=-1), old, strict=True):
        v = jnp.einsum("RNGS,RNSK->RNGK", share.astype(cache.v.dtype), cache.v)
        y = y + v.astype(y.dtype)
    return y.reshape(rows, heads, width)
