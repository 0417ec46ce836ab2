"""The contract every evolution strategy fulfils: three pure functions over a plain pytree.

Who is evaluated: the arguments all strategies share, checked once, and the members they make.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from springroll.errors import InputError
from springroll.evolve.members import Members
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
from springroll.noise.kinds import Noise
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
        if self.pop_size < 2:
            raise InputError(f"pop_size is {self.pop_size}; expected at least 2")
        if self.antithetic and self.pop_size % 2:
            raise InputError(
                f"pop_size is {self.pop_size}; antithetic pairs need an even number, such as "
                f"{self.pop_size + 1}"
            )
        if not callable(self.sigma) and not self.sigma > 0:
            raise InputError(f"sigma is {self.sigma}; expected a positive number or a schedule")
        if self.noise_reuse < 1:
            raise InputError(
                f"noise_reuse is {self.noise_reuse}; expected how many generations share noise, "
                "1 or more"
            )
        if self.noise_budget_bytes < 1:
            raise InputError(
                f"noise_budget_bytes is {self.noise_budget_bytes}; expected at least 1"
            )
        if self.pairs_per_chunk is not None and self.pairs_per_chunk < 1:
            raise InputError(
                f"pairs_per_chunk is {self.pairs_per_chunk}; expected at least 1 or None"
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
    mean = safe.sum() / count
    spread = jnp.sqrt((weight * (safe - mean) ** 2).sum() / count)
    return {
        "fitness_mean": mean,
        "fitness_max": jnp.where(valid, values, -jnp.inf).max(),
        "fitness_std": spread,
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


class Strategy(NamedTuple):
    """`init(key, params)`, `ask(state)`, `tell(state, members, fitness)`; higher is better.

    `parts` is for models that are evolved part by part: who is evaluated, and how the strategy is
    made for other members. Strategies that need all parameters together say why instead.
    """

    init: Callable[[Array, PyTree], EvolutionState]
    ask: Callable[[EvolutionState], Members]
    tell: Callable[[EvolutionState, Members, Array], tuple[EvolutionState, Metrics]]
    parts: Parts | str = "it does not say how it perturbs"


class Parts(NamedTuple):
    """What a strategy is made of: `make(population)` is the same strategy on other parameters."""

    population: Population
    make: Callable[[Population], Strategy]
