"""The weighted sum of all perturbations, as one thin GEMM per weight.

    S = sum_i w_i s_i E_i = scale * sum_p (w_2p - w_2p+1) left_p @ right_p.T

The sum over pairs and rank is the contraction of a single matrix product: no array with both a pair
axis and the axes of a weight exists. Long populations are summed in chunks of pairs, and noise that
was not stored is drawn again chunk by chunk. On a mesh every device sums its own pairs and one
all-reduce adds the devices.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec

from springroll.errors import InputError
from springroll.evolve.members import Members, chunks_of, members_spec
from springroll.evolve.perturbation import AXIS, Leaf
from springroll.quant.fixed_point import Registers, dot, in_fastest_registers

_EXACT_FLOAT32 = 1 << 24  # integers below this are exact in float32
_CAST_BYTES = 1 << 26  # float32 copies of one leaf's factors that are alive at a time


class Exact(NamedTuple):
    """How integers are summed exactly: votes up to `bound` in size, multiplied in `registers`."""

    bound: int
    registers: Registers


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


def exact_sums(
    members: Members, votes: Array, bound: int = 1, registers: Registers = "float32"
) -> dict[str, Array]:
    """`sum_p v_p left_p @ right_p.T` of integer noise, int32: equal bits however it is split.

    `votes` (P,) are integers of absolute value at most `bound`. Products are summed in int8 or, on
    a CPU without instructions for that, in float32 `registers` over as many terms as stay below
    2^24 (1,040 for int8 noise and votes of -1, 0, 1), and then in int32. At worst
    |S| = P * rank * 127^2, which wraps beyond 133,000 pairs; signs that are not all equal stay far
    below.

    Raises InputError if the noise is not an integer kind.
    """
    if members.perturbation.noise.bound is None:
        raise InputError(
            f"exact sums of {members.perturbation.noise.name!r} noise; expected an integer kind "
            "such as 'int8' or 'rademacher'"
        )
    return _sums(members, votes.astype(jnp.int32), Exact(bound, registers))


def _sums(members: Members, per_pair: Array, exact: Exact | None) -> dict[str, Array]:
    mesh = members.perturbation.mesh
    if mesh is None:
        return _on_device(members, per_pair, exact)

    def sharded(members: Members, per_pair: Array) -> dict[str, Array]:
        return jax.lax.psum(_on_device(members, per_pair, exact), AXIS)

    return jax.shard_map(
        sharded,
        mesh=mesh,
        in_specs=(members_spec(members), PartitionSpec(AXIS)),
        out_specs=PartitionSpec(),
        check_vma=False,
    )(members, per_pair)


def _on_device(members: Members, per_pair: Array, exact: Exact | None) -> dict[str, Array]:
    """The sums over this device's pairs."""
    with jax.named_scope("update"):
        return {
            leaf.path: _over_chunks(members, leaf, per_pair, exact)
            for leaf in members.perturbation.evolved
        }


def _over_chunks(members: Members, leaf: Leaf, per_pair: Array, exact: Exact | None) -> Array:
    """One parameter's sum, chunk after chunk."""
    pairs = members.pairs.shape[0]
    count, size = chunks_of(pairs, _chunk_limit(members, leaf, exact))
    dtype = jnp.float32 if exact is None else jnp.int32
    contract = _contract if exact is None else functools.partial(_contract_exactly, exact)
    if count == 1:
        return contract(leaf, members.factors_of(leaf), per_pair)
    # A last chunk that would run over the end starts earlier; pairs seen before then weigh nothing.
    fresh = np.arange(count, dtype=np.int32) * size
    starts = np.minimum(fresh, pairs - size)

    def step(total: Array, where: tuple[Array, Array]) -> tuple[Array, None]:
        start, first = where
        weights = jax.lax.dynamic_slice_in_dim(per_pair, start, size)
        weights = jnp.where(start + jnp.arange(size, dtype=jnp.int32) >= first, weights, 0)
        part = members.chunk(start, size, only=leaf)
        return total + contract(leaf, part.factors_of(leaf), weights), None

    where = (jnp.asarray(starts), jnp.asarray(fresh))
    return jax.lax.scan(step, jnp.zeros(leaf.shape, dtype), where)[0]


def _chunk_limit(members: Members, leaf: Leaf, exact: Exact | None) -> int:
    """How many pairs one contraction may take: what memory and exactness allow."""
    perturbation = members.perturbation
    limit = _CAST_BYTES // (4 * max(1, leaf.numbers_per_pair(perturbation.rank)))
    if members.factors is None and perturbation.pairs_per_chunk is not None:
        limit = min(limit, perturbation.pairs_per_chunk)
    if exact is not None:
        assert perturbation.noise.bound is not None
        terms = (_EXACT_FLOAT32 - 1) // (perturbation.noise.bound**2 * max(1, exact.bound))
        limit = min(limit, terms // perturbation.rank)
    return max(1, limit)


def _contract(leaf: Leaf, factors: tuple[Array, ...], per_pair: Array) -> Array:
    """One contraction over pairs and rank; all other axes are the parameter's own."""
    k, names = leaf.stacked, "abcdefghijklmno"[: len(leaf.shape)]
    lead, rest = names[:k], list(zip(names[k:], leaf.roles[k:], strict=False))
    real = [x.astype(jnp.float32) for x in factors]
    if leaf.kind == "dense":
        equation = f"z,{lead}z{names[k:]}->{names}"
        return jnp.einsum(equation, per_pair, real[0], precision=jax.lax.Precision.HIGHEST)
    left, right = (
        lead + "z" + "".join(name for name, role in rest if role in ("s", letter)) + "y"
        for letter in "mn"
    )
    along_pairs = [-1 if axis == k else 1 for axis in range(real[0].ndim)]
    weighted = real[0] * per_pair.reshape(along_pairs)
    return jnp.einsum(
        f"{left},{right}->{names}", weighted, real[1], precision=jax.lax.Precision.HIGHEST
    )


def _contract_exactly(exact: Exact, leaf: Leaf, factors: tuple[Array, ...], votes: Array) -> Array:
    """The same in int32, by one integer product of two matrices per stacked layer.

    Both factors are laid out with pairs and rank last: on a CPU XLA has fast int8 products for that
    layout only, thirty times faster than for others.
    """
    k = leaf.stacked
    shared_inside = "s" in leaf.roles[k:]
    if leaf.kind == "dense" or shared_inside or exact.bound > 1:  # small, rare, beyond int8
        return _contract(leaf, factors, votes.astype(jnp.float32)).astype(jnp.int32)
    along_pairs = [-1 if axis == k else 1 for axis in range(factors[0].ndim)]
    weighted = factors[0] * votes.astype(factors[0].dtype).reshape(along_pairs)
    m, n = leaf.side("m"), leaf.side("n")
    left, right = (
        jnp.moveaxis(x, k, -2).reshape(math.prod(leaf.shape[:k]), math.prod(side), -1)
        for x, side in ((weighted, m), (factors[1], n))
    )
    if left.shape[-1] > 1:  # a barrier before an outer product crashes XLA's CPU compiler
        left, right = jax.lax.optimization_barrier((left, right))
    product = lambda ab: dot(ab[0], in_fastest_registers(ab[1], exact.registers))
    one = left.shape[0] == 1
    total = product((left[0], right[0])) if one else jax.lax.map(product, (left, right))
    total = total.reshape(*leaf.shape[:k], *m, *n)
    order = [i for letter in "mn" for i in range(k, len(leaf.shape)) if leaf.roles[i] == letter]
    return jnp.transpose(
        total, [*range(k), *(k + order.index(i) for i in range(k, len(leaf.shape)))]
    )
