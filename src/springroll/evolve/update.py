"""The weighted sum of all perturbations, as one thin GEMM per weight.

    S = sum_i w_i s_i E_i = scale * sum_p (w_2p - w_2p+1) left_p @ right_p.T

The sum over pairs and rank is the contraction of a single matrix product: no array with both a pair
axis and the axes of a weight exists. Long populations are summed in chunks of pairs, and noise that
was not stored is drawn again chunk by chunk. On a mesh every device sums its own pairs and one
all-reduce adds the devices.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec

from springroll.errors import InputError
from springroll.evolve.members import Members, chunks_of, members_spec
from springroll.evolve.perturbation import AXIS, Leaf

_EXACT_FLOAT32 = 1 << 24  # integers below this are exact in float32
_CAST_BYTES = 1 << 26  # float32 copies of one leaf's factors that are alive at a time


def pair_weights(members: Members, weights: Array) -> Array:
    """(N,) member weights to (P,) weights of the shared factors: `w_plus - w_minus`."""
    signs = jnp.asarray(members.perturbation.signs, weights.dtype)
    return (weights.reshape(-1, signs.shape[0]) * signs[None]).sum(axis=1)


def direction(members: Members, weights: Array) -> dict[str, Array]:
    """`sum_i w_i s_i E_i` for every evolved parameter, float32 in the parameter's shape.

    `weights` (N,) float32 is shaped fitness. If it is independent of the noise, entries have
    variance `sum_i w_i^2` (with pairs, `sum_p (w_2p - w_2p+1)^2`).
    """
    sums = _sums(members, pair_weights(members, weights.astype(jnp.float32)), None)
    scale = {leaf.path: members.perturbation.scale(leaf) for leaf in members.perturbation.evolved}
    return {path: total * jnp.float32(scale[path]) for path, total in sums.items()}


def exact_sums(members: Members, votes: Array, bound: int = 1) -> dict[str, Array]:
    """`sum_p v_p left_p @ right_p.T` of integer noise, int32: equal bits however it is split.

    `votes` (P,) are integers of absolute value at most `bound`. Products are summed in float32 over
    as many terms as stay below 2^24 (1,040 for int8 noise and votes of -1, 0, 1) and then in int32,
    which on a CPU is five times faster than an int8 GEMM. At worst |S| = P * rank * 127^2, which
    wraps beyond 133,000 pairs; signs that are not all equal stay far below.

    Raises InputError if the noise is not an integer kind.
    """
    if members.perturbation.noise.bound is None:
        raise InputError(
            f"exact sums of {members.perturbation.noise.name!r} noise; expected an integer kind "
            "such as 'int8' or 'rademacher'"
        )
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
    """The sums over this device's pairs."""
    with jax.named_scope("update"):
        return {
            leaf.path: _over_chunks(members, leaf, per_pair, bound)
            for leaf in members.perturbation.evolved
        }


def _over_chunks(members: Members, leaf: Leaf, per_pair: Array, bound: int | None) -> Array:
    """One parameter's sum, chunk after chunk."""
    pairs = members.pairs.shape[0]
    count, size = chunks_of(pairs, _chunk_limit(members, leaf, bound))
    dtype = jnp.float32 if bound is None else jnp.int32
    if count == 1:
        return _contract(leaf, members.factors_of(leaf), per_pair).astype(dtype)
    # A last chunk that would run over the end starts earlier; pairs seen before then weigh nothing.
    fresh = np.arange(count, dtype=np.int32) * size
    starts = np.minimum(fresh, pairs - size)

    def step(total: Array, where: tuple[Array, Array]) -> tuple[Array, None]:
        start, first = where
        weights = jax.lax.dynamic_slice_in_dim(per_pair, start, size)
        weights = jnp.where(start + jnp.arange(size, dtype=jnp.int32) >= first, weights, 0)
        part = members.chunk(start, size, only=leaf)
        return total + _contract(leaf, part.factors_of(leaf), weights).astype(dtype), None

    where = (jnp.asarray(starts), jnp.asarray(fresh))
    return jax.lax.scan(step, jnp.zeros(leaf.shape, dtype), where)[0]


def _chunk_limit(members: Members, leaf: Leaf, bound: int | None) -> int:
    """How many pairs one contraction may take: what memory and exactness allow."""
    perturbation = members.perturbation
    limit = _CAST_BYTES // (4 * max(1, leaf.numbers_per_pair(perturbation.rank)))
    if members.factors is None and perturbation.pairs_per_chunk is not None:
        limit = min(limit, perturbation.pairs_per_chunk)
    if bound is not None:
        assert perturbation.noise.bound is not None
        terms = (_EXACT_FLOAT32 - 1) // (perturbation.noise.bound**2 * max(1, bound))
        limit = min(limit, terms // perturbation.rank)
    return max(1, limit)


def _contract(leaf: Leaf, factors: tuple[Array, ...], per_pair: Array) -> Array:
    """One contraction over pairs and rank; all other axes are the parameter's own."""
    k, names = leaf.stacked, "abcdefghijklmno"[: len(leaf.shape)]
    lead, rest = names[:k], list(zip(names[k:], leaf.roles[k:], strict=False))
    real = [x.astype(jnp.float32) for x in factors]
    if leaf.kind == "dense":
        return jnp.einsum(f"z,{lead}z{names[k:]}->{names}", per_pair, real[0])
    left, right = (
        lead + "z" + "".join(name for name, role in rest if role in ("s", letter)) + "y"
        for letter in "mn"
    )
    along_pairs = [-1 if axis == k else 1 for axis in range(real[0].ndim)]
    weighted = real[0] * per_pair.reshape(along_pairs)
    # The exactness of the integer kind needs full float32 products on any hardware.
    return jnp.einsum(
        f"{left},{right}->{names}", weighted, real[1], precision=jax.lax.Precision.HIGHEST
    )
