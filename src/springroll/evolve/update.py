"""The weighted sum of all perturbations, as one thin GEMM per weight.

    S = sum_i w_i s_i E_i = scale * sum_p (w_2p - w_2p+1) left_p @ right_p.T

The sum over pairs and rank is the contraction of a single matrix product: no array with both a pair axis and
the axes of a weight exists. Chunks of pairs are accumulated one after another, redrawing noise that
was not stored; on a mesh every device sums its own pairs and one all-reduce adds the devices.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec

from springroll.evolve.members import AXIS, Members, chunks_of, members_spec
from springroll.evolve.perturbation import Leaf

_EXACT_FLOAT32 = 1 << 24
_MEMBER_BLOCK = 1 << 14  # pairs cast to float32 at a time when integer factors are stored


def pair_weights(members: Members, weights: Array) -> Array:
    """(N,) member weights to (P,) weights of the shared factors: the second of a pair counts negative."""
    signs = jnp.asarray(members.perturbation.signs, weights.dtype)
    return (weights.reshape(-1, signs.shape[0]) * signs[None]).sum(axis=1)


def direction(members: Members, weights: Array) -> dict[str, Array]:
    """`sum_i w_i s_i E_i` per evolved parameter, float32 in the parameter's shape.

    `weights` (N,) float32: shaped fitness. Entries have variance `sum_i w_i^2` under the null.
    """
    per_pair = pair_weights(members, weights.astype(jnp.float32))
    sums = _sums(members, per_pair, None)
    scales = {leaf.path: members.perturbation.scale(leaf) for leaf in members.perturbation.evolved}
    return {path: x * jnp.float32(scales[path]) for path, x in sums.items()}


def exact_sums(members: Members, votes: Array, bound: int = 1) -> dict[str, Array]:
    """`sum_p v_p left_p @ right_p.T` of integer noise as int32: the same bits in any chunking or sharding.

    `votes` (P,) integers of absolute value at most `bound`. Products are summed in float32 over as many terms as
    stay below 2^24 (1,040 for int8 noise) and then in int32, which is five times faster on a CPU than an
    int8 GEMM. Worst case |S| = P * rank * 127^2 wraps beyond 2^31, which random signs never approach.
    """
    return _sums(members, votes.astype(jnp.float32), bound)


def _sums(members: Members, per_pair: Array, bound: int | None) -> dict[str, Array]:
    mesh = members.perturbation.mesh
    if mesh is None:
        return _on_device(members, per_pair, bound)

    def sharded(members: Members, per_pair: Array) -> dict[str, Array]:
        return jax.lax.psum(_on_device(members, per_pair, bound), AXIS)

    return jax.shard_map(
        sharded,
        mesh=mesh,
        in_specs=(members_spec(members), PartitionSpec(AXIS)),
        out_specs=PartitionSpec(),
        check_vma=False,
    )(members, per_pair)


def _on_device(members: Members, per_pair: Array, bound: int | None) -> dict[str, Array]:
    """Sum over this device's pairs, chunk after chunk."""
    pairs = members.pairs.shape[0]
    count, size = chunks_of(pairs, _chunk_limit(members, bound))
    if count == 1:
        return _chunk_sums(members, per_pair, bound)
    starts = np.arange(count) * size
    # A last chunk that would run over the end starts earlier; pairs seen before then weigh nothing.
    overlap = count * size - pairs
    shifted = np.minimum(starts, pairs - size)

    def step(total: dict[str, Array], where: tuple[Array, Array]) -> tuple[dict[str, Array], None]:
        start, fresh = where
        part = members.chunk(start, size)
        weights = jax.lax.dynamic_slice_in_dim(per_pair, start, size)
        if overlap:
            weights = jnp.where(start + jnp.arange(size) >= fresh, weights, 0)
        sums = _chunk_sums(part, weights, bound)
        return jax.tree.map(jnp.add, total, sums), None

    dtype = jnp.float32 if bound is None else jnp.int32
    zero = {leaf.path: jnp.zeros(leaf.shape, dtype) for leaf in members.perturbation.evolved}
    where = (jnp.asarray(shifted, jnp.int32), jnp.asarray(starts, jnp.int32))
    total, _ = jax.lax.scan(step, zero, where)
    return total


def _chunk_limit(members: Members, bound: int | None) -> int | None:
    perturbation = members.perturbation
    limits = [_MEMBER_BLOCK if perturbation.noise.bytes_per_number < 4 else None]
    if members.factors is None:
        limits.append(perturbation.pairs_per_chunk)
    if bound is not None:
        assert perturbation.noise.bound is not None, "exact sums need integer noise"
        terms = (_EXACT_FLOAT32 - 1) // (perturbation.noise.bound**2 * bound)
        limits.append(terms // perturbation.rank)
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None


def _chunk_sums(members: Members, per_pair: Array, bound: int | None) -> dict[str, Array]:
    factors = members.drawn()
    sums = {}
    with jax.named_scope("update"):
        for leaf in members.perturbation.evolved:
            total = _leaf_sum(leaf, factors[leaf.path], per_pair)
            sums[leaf.path] = total if bound is None else total.astype(jnp.int32)
    return sums


def _leaf_sum(leaf: Leaf, factors: tuple[Array, ...], per_pair: Array) -> Array:
    """One contraction over pairs and rank; all other axes are the parameter's own."""
    k = leaf.stacked
    names = "abcdefghijkl"[: len(leaf.shape)]
    real = [x.astype(jnp.float32) for x in factors]
    if leaf.kind == "dense":
        return jnp.einsum(f"p,{names[:k]}p{names[k:]}->{names}", per_pair, real[0])
    left, right = (
        names[:k]
        + "p"
        + "".join(c for c, r in zip(names[k:], leaf.roles[k:], strict=True) if r in ("s", letter))
        + "r"
        for letter in "mn"
    )
    weighted = real[0] * per_pair.reshape((1,) * k + (-1,) + (1,) * (real[0].ndim - k - 1))
    return jnp.einsum(f"{left},{right}->{names}", weighted, real[1])


def tree_like(params: Any, values: dict[str, Array], default: Any) -> Any:
    """`values` by path as a tree of the structure of `params`; `default` for paths without a value."""
    from springroll.evolve.perturbation import path_of

    return jax.tree_util.tree_map_with_path(
        lambda path, _: values.get(path_of(path), default), params
    )
