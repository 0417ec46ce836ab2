"""A new subspace for some layers: merge, change of basis, S = 0, moments carried over."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from springroll.lowgrad import moments
from springroll.lowgrad.leaves import Layout
from springroll.lowgrad.merge import merged
from springroll.lowgrad.streams import Stream
from springroll.lowgrad.subspace import Moments, change_of_basis, orthonormal


def initial(layout: Layout, key: Array) -> dict[str, Array]:
    """Random orthonormal bases: the first power step starts from them."""
    sizes = {s.name: (*s.sizes, layout.rank) for s in layout.streams}
    return {s.name: drawn(s, layout.rank, key).reshape(sizes[s.name]) for s in layout.streams}


def drawn(stream: Stream, rank: int, key: Array) -> Array:
    """A random basis for every slice of a stream: (depth, bases per layer, inputs, rank)."""
    key = jax.random.fold_in(key, zlib.crc32(stream.name.encode()))
    return orthonormal(jax.random.normal(key, (*stream.bases, rank)))


def turned(
    layout: Layout,
    params: Any,
    projectors: Mapping[str, Array],
    low: Mapping[str, Array],
    opt: Any,
    directions: Mapping[str, Array],
    layers: Mapping[str, Array],
    counts: Mapping[str, Array],
    key: Array,
    how: Moments,
) -> tuple[Any, dict[str, Array], dict[str, Array], Any, dict[str, Array]]:
    """(params, projectors, low, opt, overlap) after the chosen layers got new bases.

    For every stream, the first counts[name] of layers[name] (indices along the stack) are merged
    into their weights and get the basis orthonormal(directions). `overlap` (depth,) says how much
    of the old subspace the new one kept, 1 for layers that were not chosen.
    """
    params = merge(layout, params, projectors, low, layers, counts, key)
    new, change, overlap, chosen, low = {}, {}, {}, {}, dict(low)
    for stream in layout.streams:
        name = stream.name
        at = jnp.where(jnp.arange(stream.depth) < counts[name], layers[name], stream.depth)
        chosen[name] = jnp.zeros(stream.depth, bool).at[at].set(True, mode="drop")
        new[name], change[name] = _bases(
            stream, layout.rank, projectors[name], directions[name], layers[name], counts[name]
        )
        energy = jnp.sum(jnp.square(change[name]), axis=(-2, -1)) / layout.rank
        overlap[name] = jnp.where(chosen[name], jnp.mean(energy, axis=-1), 1.0)
        for user in stream.users:
            low[user.path] = _cleared(low[user.path], chosen[name], user.stacked)
    opt = moments.rotated(opt, layout.thin, change, chosen, how)
    return params, new, low, opt, overlap


def merge(
    layout: Layout,
    params: Any,
    projectors: Mapping[str, Array],
    low: Mapping[str, Array],
    layers: Mapping[str, Array],
    counts: Mapping[str, Array],
    key: Array,
) -> Any:
    """The parameters with P S added to the weights of the chosen layers."""
    thin = layout.thin

    def one(path: str, weight: Any) -> Any:
        if path not in thin:
            return weight
        stream = thin[path].stream
        mine = jax.random.fold_in(key, zlib.crc32(path.encode()))
        return merged(weight, mine, layers[stream], counts[stream])

    return layout.map(one, layout.weights(params, projectors, low))


def _bases(
    stream: Stream, rank: int, old: Array, directions: Array, layers: Array, count: Array
) -> tuple[Array, Array]:
    """(new projector, change of basis (depth, bases, r, r)); identity where nothing changed."""
    shape = (*stream.bases, rank)
    flat, wanted = old.reshape(shape), directions.reshape(shape)
    same = jnp.broadcast_to(jnp.eye(rank), (*stream.bases[:2], rank, rank))

    def one(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        bases, change = carry
        pick = lambda a: lax.dynamic_index_in_dim(a, layers[i], 0, keepdims=False)
        before = pick(bases)
        after = orthonormal(pick(wanted), near=before)
        c = change_of_basis(after, before)
        put = lambda a, b: lax.dynamic_update_index_in_dim(a, b.astype(a.dtype), layers[i], 0)
        return put(bases, after), put(change, c)

    new, change = lax.fori_loop(0, count, one, (flat, same))
    return new.reshape(old.shape), change


def _cleared(low: Array, chosen: Array, stacked: bool) -> Array:
    mask = chosen if stacked else chosen[:1].reshape(())
    return jnp.where(mask.reshape(mask.shape + (1,) * (low.ndim - mask.ndim)), 0.0, low)
