"""EGGROLL on the integer lattice: int8 weights, int8 noise, ternary votes, no gradient."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from springroll.compat import edge_jit
from springroll.errors import InputError, expect
from springroll.evolve.lattice_rules import RULES, Rule, Votes
from springroll.evolve.members import Members
from springroll.evolve.perturbation import Leaf, Perturbation
from springroll.evolve.roles import Roles, plan_keyword
from springroll.evolve.shaping import finite, pair_votes
from springroll.evolve.strategy import (
    EvolutionState,
    Parts,
    Population,
    SigmaSchedule,
    Strategy,
    as_arrays,
    checked,
    fitness_metrics,
)
from springroll.evolve.update import exact_sums
from springroll.noise.kinds import Noise
from springroll.quant.fixed_point import ONE, Registers, saturate, store
from springroll.quant.registers import fastest_registers
from springroll.thin.factored_array import Factored, Lattice
from springroll.trees import Metrics, PyTree, map_named, named_leaves

_SAMPLE = 1 << 12  # weights per parameter that the metric `moved` looks at


def attach_lattice(
    perturbation: Perturbation,
    leaf: Leaf,
    base: Array,
    factors: tuple[Array, ...],
    sign: Array,
    sigma: Array,
) -> Array | Factored:
    """`base + sign * sigma * E` rounded to integers; sigma in units of 1.0, which is 16 steps.

    Factors are integers of standard deviation 16, so left * right / 16 has that of 1.0.
    """
    gain = sign * sigma
    if leaf.kind == "dense":
        noise = jnp.rint(factors[0].astype(jnp.float32) * gain).astype(jnp.int32)
        return saturate(base.astype(jnp.int32) + noise).astype(jnp.int8)
    left, right = factors
    lattice = Lattice(scale=1 / (ONE * perturbation.rank**0.5))
    return Factored(base=base, left=left, right=right, gain=gain, roles=leaf.roles, lattice=lattice)


@plan_keyword
def lattice(
    *,
    pop_size: int,
    sigma: SigmaSchedule = 2.0**-3,
    rank: int = 1,
    rule: str | Rule = "residual",
    roles: Roles | None = None,
    noise: str | Noise = "int8",
    noise_reuse: int = 1,
    noise_budget_bytes: int = 1 << 28,
    pairs_per_chunk: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    registers: Registers | None = None,
) -> Strategy:
    """Evolve int8 weights with int8 noise; the state and every step are integers.

    Member i stands at `M + sigma s_i E_i`, rounded where the thin term is consumed, with antithetic
    s_i = +1, -1. Each pair votes F = sign(fitness+ - fitness-); `Z = sum_p F_p left_p @ right_p.T`
    is summed exactly in int32, and `rule` (see `lattice_rules`) turns it into steps of integers.
    Parameters that are not int8 are frozen. Fitness may be integer or real: only its sign within a
    pair counts, and a pair with a NaN or infinite fitness does not vote.

    Args:
        pop_size: N, even.
        sigma: Size of the perturbation, 1.0 being 16 steps of the lattice; 2**-4 is the paper's
            sigma_shift 4. A number or a schedule of the generation.
        rank: Of the perturbation, at least 1.
        rule: "residual" (ours), "threshold" (the published rule without its bias), "published", or
            a `Rule`.
        roles: As in `sr.eggroll`.
        noise: "int8" or another kind of integers.
        noise_reuse: As in `sr.eggroll`.
        noise_budget_bytes: As in `sr.eggroll`.
        pairs_per_chunk: As in `sr.eggroll`.
        mesh: As in `sr.eggroll`.
        registers: Where votes are multiplied, "int8" or "float32"; default: the faster of the two
            on this machine. It never changes a bit.

    Returns:
        The strategy. Its `tell` returns metrics: fitness_mean, fitness_max, fitness_std, sigma,
        moved (steps per parameter), ties (pairs without a vote, as a fraction) and dropped. The
        state holds no float.

    Raises:
        InputError: An argument is out of its range, or no parameter is int8.

    Source: arXiv 2511.16652v2, appendices G and H.
    """
    population = Population(
        pop_size=pop_size,
        sigma=sigma,
        rank=rank,
        roles=roles,
        noise=noise,
        noise_reuse=noise_reuse,
        noise_budget_bytes=noise_budget_bytes,
        pairs_per_chunk=pairs_per_chunk,
        mesh=mesh,
        integers=True,
        attach_leaf=attach_lattice,
    )
    rule = rule_named(rule) if isinstance(rule, str) else rule
    expect(isinstance(rule, Rule), "rule", rule, "a name or a Rule")
    return by_votes(population, rule, vote_noise, registers or fastest_registers())


def by_votes(
    population: Population,
    rule: Rule,
    noise_of: Callable[[Perturbation, Leaf], float],
    registers: Registers,
) -> Strategy:
    """The strategy that sums the votes of a population and moves int8 weights by `rule`.

    `noise_of` is the standard deviation of one pair's term in Z.
    """

    def init(key: Array, params: PyTree) -> EvolutionState:
        params = as_arrays(params)
        evolved = {leaf.path for leaf in population.announced(params).evolved}
        memory = {path: rule.init(x) for path, x in named_leaves(params).items() if path in evolved}
        seed = jax.random.bits(key, (2,), jnp.uint32)
        return population.placed(EvolutionState(params, (), memory, seed, jnp.int32(0)))

    @edge_jit
    def ask(state: EvolutionState) -> Members:
        return population.members(state)

    @edge_jit
    def tell(
        state: EvolutionState, members: Members, fitness: Array
    ) -> tuple[EvolutionState, Metrics]:
        ballots = pair_votes(fitness)
        totals = exact_sums(members, ballots, registers=registers)
        votes = {
            leaf.path: Votes(
                totals[leaf.path], noise_of(members.perturbation, leaf), population.pairs
            )
            for leaf in members.perturbation.evolved
        }
        moves, memory = {}, {}
        for path, vote in votes.items():
            moves[path], memory[path] = rule.move(vote, state.opt_state[path], state.generation)
        params = map_named(lambda path, x: stepped(x, moves.get(path)), state.params)
        new = EvolutionState(params, (), memory, state.seed, state.generation)
        if not rule.blind:  # no vote, no direction: the memory must not move the weights either
            voted = jnp.any(ballots != 0)
            new = jax.tree.map(lambda a, b: jnp.where(voted, a, b), new, state)
        metrics = fitness_metrics(fitness, finite(fitness)) | {
            "sigma": members.sigma,
            "moved": distance(new.params, state.params),
            "ties": jnp.mean((ballots == 0).astype(jnp.float32)),
        }
        return new._replace(generation=state.generation + 1), metrics

    make = functools.partial(by_votes, rule=rule, noise_of=noise_of, registers=registers)
    return checked(init, ask, tell, Parts(population, make))


def rule_named(name: str) -> Rule:
    if name not in RULES:
        raise InputError(f"rule {name!r} is unknown; expected one of {', '.join(sorted(RULES))}")
    return RULES[name]()


def vote_noise(perturbation: Perturbation, leaf: Leaf) -> float:
    """Standard deviation of one pair's term in Z: 256 for a rank-1 product, 16 for a vector."""
    one = 1 / perturbation.noise.scale
    spread = one if leaf.kind == "dense" else one**2 * perturbation.rank**0.5
    return float(np.rint(spread)) if perturbation.rank == 1 else spread


def stepped(x: Array, move: Array | None) -> Array:
    """An int8 weight after a move in whole steps; a frozen parameter as it is."""
    return x if move is None else store(x.astype(jnp.int32) + move)


def distance(new: PyTree, old: PyTree) -> Array:
    """Mean steps per weight, from a sample: a sum over all would cost as much as the step."""
    pairs = zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)
    steps = [_sampled_steps(a, b) * a.size for a, b in pairs]
    return jnp.stack(steps).sum() / sum(x.size for x in jax.tree.leaves(new))


def _sampled_steps(new: Array, old: Array) -> Array:
    stride = max(1, new.size // _SAMPLE)
    some = lambda x: x.reshape(-1)[::stride].astype(jnp.float32)
    return jnp.mean(jnp.abs(some(new) - some(old)))
