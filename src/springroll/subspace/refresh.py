"""A new subspace for some layers: merge, change of basis, S = 0, moments carried over.

W <- W + P S, the one moment at which a weight changes.

float32 is exact (one rounding of the sum). bfloat16 and int8 are rounded at random, so that what
one interval moved survives on average, however little it is.
"""

import functools
import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array

from springroll.quant.stochastic_rounding import round_stochastically
from springroll.subspace import moments
from springroll.subspace.basis import Moments, change_of_basis, orthonormal, random_basis
from springroll.subspace.leaves import Layout
from springroll.subspace.moments import layer_of, update_layers
from springroll.subspace.stored_basis import Basis, BasisBits, floats, stored, stored_like
from springroll.subspace.streams import Stream, place
from springroll.thin.factored_array import Factored
from springroll.trees import PyTree

MERGED = tuple(map(jnp.dtype, ("float32", "bfloat16", "int8")))  # types that weights can have


def merged(weight: Factored, key: Array) -> Array:
    """The dense weight in the type of its base; short types are rounded at random."""
    if weight.dtype == jnp.float32:
        return weight.dense()
    exact = weight.dense(jnp.float32)
    if weight.dtype == jnp.bfloat16:
        return round_stochastically(exact, jax.random.bits(key, exact.shape, jnp.uint32))
    assert weight.dtype == jnp.int8  # lowgrad lets no other in
    up = jax.random.uniform(key, exact.shape)
    return jnp.clip(jnp.floor(exact + up), -127, 127).astype(jnp.int8)


def random_bases(layout: Layout, key: Array) -> dict[str, Basis]:
    """Random orthonormal bases, stream -> P: what training starts from, or `refresh="random"`."""
    return {
        s.name: _drawn(jax.random.fold_in(key, zlib.crc32(s.name.encode())), s, layout.basis_bits)
        for s in layout.streams
    }


def _drawn(key: Array, stream: Stream, bits: BasisBits) -> Basis:
    basis = _bases(key, (*stream.bases, stream.rank)).reshape(*stream.sizes, stream.rank)
    return _stored(basis, bits, stream.input_axes + 1)


_bases = jax.jit(random_basis, static_argnums=1)  # one program per shape, not per trainer
_stored = jax.jit(stored, static_argnums=(1, 2))


def refreshed(
    layout: Layout,
    base: PyTree,
    projectors: Mapping[str, Basis],
    low: Mapping[str, Array],
    opt: PyTree,
    directions: Mapping[str, Basis] | None,
    layers: Mapping[str, Array],
    counts: Mapping[str, Array],
    key: Array,
    how: Moments,
) -> tuple[PyTree, dict[str, Basis], dict[str, Array], PyTree, dict[str, Array]]:
    """(base, projectors, low, opt, overlap) after the chosen layers got new bases.

    For every stream, the first counts[name] of layers[name] (indices along the stack) are merged
    into their weights and get the basis orthonormal(directions); without directions they keep
    theirs. `overlap` (depth,) says how much of the old subspace the new one kept, 1 for layers
    that were not chosen.
    """
    flat = dict(zip(layout.paths, layout.tree.flatten_up_to(base), strict=True))
    new, change, overlap, low = {}, {}, {}, dict(low)
    for stream in layout.streams:
        name = stream.name
        depth, bases, _ = stream.bases
        rank = stream.rank
        same = jnp.broadcast_to(jnp.eye(rank), (depth, bases, rank, rank))
        parts = {
            "basis": projectors[name],
            "change": same,
            "base": {user.path: flat[user.path] for user in stream.users},
            "low": {user.path: low[user.path] for user in stream.users},
        }
        target = None if directions is None else directions[name]
        one = functools.partial(refresh_layer, stream, target, key)
        after = update_layers(one, parts, layers[name], counts[name], stream.stacked)
        new[name], change[name] = after["basis"], after["change"]
        flat.update(after["base"])
        low.update(after["low"])
        energy = jnp.sum(jnp.square(change[name]), axis=(-2, -1)) / rank
        overlap[name] = jnp.mean(energy, axis=-1)
    if directions is not None:
        opt = moments.rotated(opt, layout.thin, change, layers, counts, how)
    base = jax.tree.unflatten(layout.tree, [flat[path] for path in layout.paths])
    return base, new, low, opt, overlap


def refresh_layer(
    stream: Stream, target: Basis | None, key: Array, part: PyTree, layer: Array
) -> PyTree:
    """One layer of a stream: weights merged, S = 0, and a new basis with C = P_newᵀ P_old."""
    kept, base, low = part["basis"], dict(part["base"]), dict(part["low"])
    basis = floats(kept)
    for user in stream.users:
        path = user.path
        roles = user.roles[1:] if user.stacked else user.roles
        left, right = place(basis, roles, "sm"), place(low[path], roles, "sn")
        own = jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(path.encode())), layer)
        base[path] = merged(Factored(base[path], left, right, None, roles, path=path), own)
        low[path] = jnp.zeros_like(low[path])
    if target is None:
        return {**part, "base": base, "low": low}
    _, bases, inputs = stream.bases
    old = basis.reshape(bases, inputs, -1)
    directions = floats(layer_of(target, layer) if stream.stacked else target)
    exact = orthonormal(directions.reshape(old.shape), near=old)
    new = stored_like(kept, exact.reshape(basis.shape))
    change = change_of_basis(floats(new).reshape(old.shape), old).reshape(part["change"].shape)
    return {"basis": new, "change": change, "base": base, "low": low}
