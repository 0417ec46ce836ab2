"""The contract every evolution strategy fulfils: three pure functions over a plain pytree.

Who is evaluated: the arguments all strategies share, checked once, and the members they make.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from springroll.errors import InputError, check_takes, expect, kind_of
from springroll.evolve.announce import announce
from springroll.evolve.arguments import (
    check_key,
    check_population,
    check_state,
    fitness_of,
    is_positive,
    whole_number,
)
from springroll.evolve.members import Members
from springroll.evolve.momentum import Past
from springroll.evolve.perturbation import (
    AXIS,
    AttachLeaf,
    DrawLeaf,
    Perturbation,
    attach_real,
    auto_mesh,
    draw_counted,
)
from springroll.evolve.roles import Roles, check_roles, describe
from springroll.evolve.shaping import scale_of
from springroll.evolve.step import Guard
from springroll.noise.kinds import Noise, noise_named
from springroll.trees import Metrics, PyTree, map_named

SigmaSchedule: TypeAlias = float | Callable[[Array], ArrayLike]
"""A positive number, or a function of the generation (an int32 scalar) that returns one."""


@dataclass(frozen=True, kw_only=True)
class Population:
    """How a strategy perturbs; the fields are the arguments of `sr.eggroll` with the same names."""

    pop_size: int
    sigma: SigmaSchedule
    rank: int = 1
    roles: Roles | None = None
    noise: str | Noise = "gaussian"
    noise_reuse: int = 1
    noise_budget_bytes: int = 1 << 30
    pairs_per_chunk: int | None = None
    mesh: jax.sharding.Mesh | None = None
    antithetic: bool = True
    integers: bool = False
    attach_leaf: AttachLeaf = attach_real
    draw_leaf: DrawLeaf = draw_counted
    known: Perturbation | None = None  # of a part of a model: decided for the whole model

    def __post_init__(self) -> None:
        check_roles(self.roles)
        expect(isinstance(self.antithetic, bool), "antithetic", self.antithetic, "True or False")
        auto_mesh(self.mesh)
        whole_number("pop_size", self.pop_size, 2)
        whole_number("rank", self.rank, 1, "an integer of at least 1")
        sharing = "how many generations share noise, 1 or more"
        whole_number("noise_reuse", self.noise_reuse, 1, sharing)
        whole_number("noise_budget_bytes", self.noise_budget_bytes, 1)
        if self.pairs_per_chunk is not None:
            whole_number("pairs_per_chunk", self.pairs_per_chunk, 1, "at least 1 or None")
        if isinstance(self.noise, str):
            noise_named(self.noise)
        elif not isinstance(self.noise, Noise):
            raise InputError(f"noise is {kind_of(self.noise)}; expected a name or a Noise")
        if self.antithetic and self.pop_size % 2:
            raise InputError(
                f"pop_size is {self.pop_size}; antithetic pairs need an even number, such as "
                f"{self.pop_size + 1}"
            )
        if callable(self.sigma):
            check_takes(self.sigma, "sigma", 0)
        elif not is_positive(self.sigma):
            raise InputError(
                f"sigma is {self.sigma!r}; expected a positive number or a schedule (a number that "
                "float32 holds, so neither infinite nor below 1e-45)"
            )
        if self.pairs % self.devices:
            raise InputError(
                f"pop_size {self.pop_size} makes {self.pairs} pairs, which do not divide over "
                f"{self.devices} devices"
            )

    @property
    def pairs(self) -> int:
        return self.pop_size // 2 if self.antithetic else self.pop_size

    @property
    def devices(self) -> int:
        mesh = auto_mesh(self.mesh)
        return 1 if mesh is None else mesh.shape[AXIS]

    def perturbation(self, params: PyTree) -> Perturbation:
        """What is perturbed and how; whether factors are kept or redrawn, by the byte budget."""
        if self.known is not None:
            return self.known
        described = describe(
            params,
            rank=self.rank,
            roles=self.roles,
            noise=self.noise,
            antithetic=self.antithetic,
            integers=self.integers,
            mesh=self.mesh,
        )
        return self._within_budget(
            replace(described, attach_leaf=self.attach_leaf, draw_leaf=self.draw_leaf)
        )

    def announced(self, params: PyTree) -> Perturbation:
        """`perturbation`, once a run begins: what users may not expect of it is said."""
        perturbation = self.perturbation(params)
        if self.known is None:
            announce(perturbation, self.roles)
        return perturbation

    def of_part(self, part: Perturbation) -> Population:
        """The same members, of whose parameters these are a part.

        Each layer's factors are used once before the next layer comes, so they are not kept.
        """
        return replace(self, known=replace(self._within_budget(part), stored=False))

    def _within_budget(self, perturbation: Perturbation) -> Perturbation:
        fits = max(1, self.noise_budget_bytes // max(1, perturbation.bytes_per_pair()))
        stored = fits >= self.pairs // self.devices
        limit = self.pairs_per_chunk if stored else min(fits, self.pairs_per_chunk or fits)
        return replace(perturbation, stored=stored, pairs_per_chunk=limit)

    def members(self, state: EvolutionState) -> Members:
        """This generation's members, with their factors where those fit the budget."""
        perturbation = self.perturbation(state.params)
        members = Members(
            pairs=jnp.arange(self.pairs, dtype=jnp.uint32),
            factors=None,
            seed=state.seed,
            epoch=state.generation // self.noise_reuse,
            sigma=at(self.sigma, state.generation),
            perturbation=perturbation,
        )
        return members.keep_factors() if perturbation.stored else members

    def placed(self, state: EvolutionState) -> EvolutionState:
        """On every device from the start, so that the second step runs the program of the first."""
        mesh = auto_mesh(self.mesh)
        if mesh is None:
            return state
        return jax.device_put(state, NamedSharding(mesh, PartitionSpec()))


def at(schedule: SigmaSchedule, generation: Array) -> Array:
    """A number or a schedule of the generation, float32."""
    value = schedule(generation) if callable(schedule) else schedule
    return jnp.asarray(value, jnp.float32)


def as_arrays(params: PyTree) -> PyTree:
    """Every leaf as a JAX array; raises InputError for what is not a number or an array."""

    def one(path: str, x: ArrayLike) -> Array:
        if not isinstance(x, Array | np.ndarray | np.generic | float | int):
            raise InputError(
                f"{path} is a {type(x).__name__}; expected arrays only: "
                "split the model into its arrays and the rest first"
            )
        return jnp.asarray(x)

    return map_named(one, params)


def fitness_metrics(fitness: Array, valid: Array) -> Metrics:
    """Mean, maximum and deviation of the valid members' fitness, and how many were dropped."""
    values = fitness.astype(jnp.float32)
    weight = valid.astype(jnp.float32)
    count = jnp.maximum(weight.sum(), 1.0)
    safe = jnp.where(valid, values, 0.0)
    scale = scale_of(safe)
    safe = safe * scale
    mean = safe.sum() / count
    spread = jnp.sqrt((weight * (safe - mean) ** 2).sum() / count)
    return {
        "fitness_mean": mean / scale,
        "fitness_max": jnp.where(valid, values, -jnp.inf).max(),
        "fitness_std": spread / scale,
        "dropped": (~valid).sum().astype(jnp.int32),
    }


class EvolutionState(NamedTuple):
    """Everything a run needs to go on, as arrays only: to resume is to load them."""

    params: PyTree  # the model's parameters, in their own dtypes: the mean of the population
    master: (
        PyTree  # float32 copies or int8 residuals of short evolved parameters, nothing elsewhere
    )
    opt_state: PyTree  # of the optax optimizer, over the evolved parameters
    seed: Array  # (2,) uint32
    generation: Array  # () int32
    past: Past | None = None  # of momentum that is made again


Init: TypeAlias = Callable[[Array, PyTree], EvolutionState]
Ask: TypeAlias = Callable[[EvolutionState], Members]
Tell: TypeAlias = Callable[
    [EvolutionState, Members, ArrayLike | Sequence[float]], tuple[EvolutionState, Metrics]
]


class Strategy(NamedTuple):
    """`init(key, params)`, `ask(state)`, `tell(state, members, fitness)`; higher is better.

    `parts` is for models that are evolved part by part: who is evaluated, and how the strategy is
    made for other members. Strategies that need all parameters together say why instead.
    """

    init: Init
    ask: Ask
    tell: Tell
    parts: Parts | str = "it does not say how it perturbs"


def checked(init: Init, ask: Ask, tell: Tell, parts: Parts | str) -> Strategy:
    """The strategy of three functions whose arguments are checked first, one line for each."""

    @functools.wraps(init)
    def checked_init(key: Array, params: PyTree) -> EvolutionState:
        check_key(key)
        return init(key, params)

    @functools.wraps(ask)
    def checked_ask(state: EvolutionState) -> Members:
        check_state(state, "es.ask(state)")
        return ask(state)

    @functools.wraps(tell)
    def checked_tell(
        state: EvolutionState, members: Members, fitness: ArrayLike | Sequence[float]
    ) -> tuple[EvolutionState, Metrics]:
        check_population(state, members, "es.tell(state, members, fitness)")
        return tell(state, members, fitness_of(fitness, members.size))

    return Strategy(checked_init, checked_ask, checked_tell, parts)


class Step(NamedTuple):
    """`tell` in two: how long the step is, and the step, which its length may shorten.

    limit: `max_step_ratio`. squares: (state, members, fitness) -> (2,), the squared norms of all
    updates and of all weights. move: (state, members, fitness, guard) -> the state after the step.
    """

    limit: float | None
    squares: Callable[[EvolutionState, Members, Array], Array]
    move: Callable[[EvolutionState, Members, Array, Guard], EvolutionState]


class Parts(NamedTuple):
    """What a strategy is made of: `make(population)` is the same strategy on other parameters.

    step: of strategies that follow the sum of the members; None: others.
    """

    population: Population
    make: Callable[[Population], Strategy]
    step: Step | None = None
