"""The integer strategy exactly as published: its noise, its floors and its rule, bit for bit.

Kept to compare with. `lattice` is the one to use: it has no large table, rounds symmetrically,
moves nothing where Z = 0 and takes any rank. Described in arXiv 2511.16652v2, appendices G and H.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from springroll.errors import InputError
from springroll.evolve import lattice_rules
from springroll.evolve.arguments import check_key
from springroll.evolve.lattice import by_votes
from springroll.evolve.lattice_rules import Rule
from springroll.evolve.perturbation import AttachLeaf, DrawLeaf, Leaf, Perturbation
from springroll.evolve.roles import Roles
from springroll.evolve.strategy import EvolutionState, Population, Strategy
from springroll.noise.kinds import Noise
from springroll.quant.fixed_point import FRACTION_BITS, ONE, Registers, saturate
from springroll.quant.registers import fastest_registers
from springroll.thin.factored_array import Factored, Lattice
from springroll.trees import PyTree

_PAIR_NOISE = float(ONE**2)  # taken for the deviation of one pair's term in Z, of vectors too


def published(
    *,
    pop_size: int,
    sigma_shift: int = 4,
    alpha: float = 4.0,
    decay: float = 1000.0,
    rule: Rule | None = None,
    roles: Roles | None = None,
    table_seed: int = 0,
    table_bits: int = 24,
    noise_reuse: int = 1,
    noise_budget_bytes: int = 1 << 28,
    pairs_per_chunk: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    registers: Registers | None = None,
) -> Strategy:
    """`lattice` with the published semantics; its arguments and metrics unless named here.

    Rank is 1. The key that `init` is given is the root of all noise keys, of the kind threefry.

    Args:
        pop_size: N, even.
        sigma_shift: Products of noise are shifted right by 4 + sigma_shift, so a perturbation has
            about the size 2**-sigma_shift where weights have 1.
        alpha: Of the published rule.
        decay: Of the published rule, in generations.
        rule: One to use in its place.
        roles: A matrix is m x n in the order of its axes, stacks of matrices have their layers
            first. Vectors in a stack need to be marked: `{"blocks/bias_*": "sd"}`.
        table_seed: Of the table of noise.
        table_bits: The noise is a table of 2**table_bits int8. The published one has 30 bits and
            takes a GiB; 24 suffice for models of a few million parameters.
        noise_reuse: As in `lattice`.
        noise_budget_bytes: As in `lattice`.
        pairs_per_chunk: As in `lattice`.
        mesh: As in `lattice`.
        registers: As in `lattice`.

    Raises:
        InputError: An argument is out of its range.
    """
    if sigma_shift < 0:
        raise InputError(f"sigma_shift is {sigma_shift}; expected 0 or more")
    if not 8 <= table_bits <= 30:
        raise InputError(f"table_bits is {table_bits}; expected 8 to 30")
    table = noise_table(table_seed, table_bits)
    population = Population(
        pop_size=pop_size,
        sigma=2.0**-sigma_shift,
        roles=roles,
        noise=Noise("published", 1 / ONE, 127, 1, _sampled_by_draw_leaf),
        noise_reuse=noise_reuse,
        noise_budget_bytes=noise_budget_bytes,
        pairs_per_chunk=pairs_per_chunk,
        mesh=mesh,
        integers=True,
        attach_leaf=attach_with(sigma_shift),
        draw_leaf=draw_from(table),
    )
    rule = lattice_rules.published(alpha=alpha, decay=decay) if rule is None else rule
    noise_of = lambda perturbation, leaf: _PAIR_NOISE
    strategy = by_votes(population, rule, noise_of, registers or fastest_registers())

    def init(key: Array, params: PyTree) -> EvolutionState:
        check_key(key)
        root = jax.random.key_data(key)
        if root.shape != (2,):
            raise InputError(
                f"the key has {root.shape[-1]} words; the published noise needs a "
                "threefry key: jax.random.key(seed, impl='threefry2x32')"
            )
        return strategy.init(key, params)._replace(seed=root)

    why = "the published noise is addressed by the order of all parameters"
    return Strategy(init, strategy.ask, strategy.tell, why)


@functools.cache
def noise_table(seed: int, bits: int) -> np.ndarray:
    """(2**bits,) int8: 16 N(0, 1) cut towards zero, so of deviation 15.6.

    The last bits of a normal number differ between kinds of hardware, and so can a few entries.
    """
    normal = np.asarray(jax.random.normal(jax.random.key(seed), (1 << bits,), jnp.float32))
    return np.trunc(normal * np.float32(ONE)).astype(np.int8)


def draw_from(table: np.ndarray) -> DrawLeaf:
    """One contiguous slice of the table per pair and matrix: first the n numbers of the right
    factor, then the m of the left one. Vectors take two slices' worth, multiplied.
    """
    bits = table.size.bit_length() - 1

    def draw(
        perturbation: Perturbation, leaf: Leaf, seed: Array, epoch: Array, pairs: Array
    ) -> tuple[Array, ...]:
        shared = leaf.shape[: leaf.stacked]
        layers = math.prod(shared)
        width = leaf.numbers_per_pair(1) // max(1, layers) * (2 if leaf.kind == "dense" else 1)
        if width > table.size:
            raise InputError(
                f"{leaf.path} takes {width:,} numbers of noise per member, the table has "
                f"{table.size:,}; raise table_bits"
            )
        words = leaf_words(perturbation, leaf, seed, epoch)
        starts = (words[:, None] ^ pair_hash(pairs)[None]) & np.uint32((1 << bits) - 1)
        numbers = jnp.asarray(table)
        cut = lambda start: lax.dynamic_slice(numbers, (start,), (width,))  # clamped at the end
        flat = jax.vmap(jax.vmap(cut))(starts.astype(jnp.int32))
        lead = (*shared, pairs.shape[0])
        if leaf.kind == "dense":
            one, other = jnp.split(flat.astype(jnp.int16), 2, axis=-1)
            product = one * other
            return (product.reshape(*lead, *leaf.shape[leaf.stacked :]),)
        m, n = leaf.side("m"), leaf.side("n")
        right, left = flat[..., : math.prod(n)], flat[..., math.prod(n) :]
        return left.reshape(*lead, *m, 1), right.reshape(*lead, *n, 1)

    return draw


def leaf_words(perturbation: Perturbation, leaf: Leaf, seed: Array, epoch: Array) -> Array:
    """(layers,) uint32: first words of the epoch's key of every layer (1 for an unstacked leaf).

    The root key is split over all parameters in the order of the tree, that of a stacked one once
    more over its layers, and the epoch folded in last.
    """
    root = jax.random.wrap_key_data(seed, impl="threefry2x32")
    key = jax.random.split(root, len(perturbation.leaves))[perturbation.leaves.index(leaf)]
    keys = (
        jax.random.split(key, math.prod(leaf.shape[: leaf.stacked])) if leaf.stacked else key[None]
    )
    folded = jax.vmap(lambda k: jax.random.fold_in(k, epoch))(keys)
    return jax.random.key_data(folded)[:, 0]


def pair_hash(pairs: Array) -> Array:
    """((x >> 16) ^ x) * 0x45d9f3b modulo 2**32."""
    return ((pairs >> np.uint32(16)) ^ pairs) * np.uint32(0x45D9F3B)


def attach_with(sigma_shift: int) -> AttachLeaf:
    """Products of noise and what they meet, the member's sign included, shifted right: a floor."""
    shift = FRACTION_BITS + sigma_shift
    lattice = Lattice(scale=2.0**-shift, rounding="floor")

    def attach(
        perturbation: Perturbation,
        leaf: Leaf,
        base: Array,
        factors: tuple[Array, ...],
        sign: Array,
        sigma: Array,
    ) -> Array | Factored:
        if leaf.kind == "dense":
            noise = (factors[0].astype(jnp.int32) * sign.astype(jnp.int32)) >> shift
            return saturate(base.astype(jnp.int32) + noise).astype(jnp.int8)
        left, right = factors
        return Factored(
            base=base, left=left, right=right, gain=sign, roles=leaf.roles, lattice=lattice
        )

    return attach


def _sampled_by_draw_leaf(stream: Array, pairs: Array, size: int) -> Array:
    raise AssertionError("published noise is drawn leaf by leaf")
