"""The contract every evolution strategy fulfils: three pure functions over a plain pytree."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from jax import Array

from springroll.evolve.members import Members

if TYPE_CHECKING:
    from springroll.evolve.population import Population


class State(NamedTuple):
    """Everything a run needs to go on, as arrays only: to resume is to load them."""

    params: Any  # the model's parameters, in their own dtypes: the centre of the population
    master: Any  # float32 copies or int8 residuals of short evolved parameters, nothing elsewhere
    opt_state: Any  # of the optax optimizer, over the evolved parameters
    seed: Array  # (2,) uint32
    generation: Array  # () int32


class Strategy(NamedTuple):
    """`init(key, params)`, `ask(state)`, `tell(state, members, fitness)`; higher is better.

    `parts` is for models that are evolved part by part: who is evaluated, and how the strategy is
    made for other members. Strategies that need all parameters together say why instead.
    """

    init: Callable[[Array, Any], State]
    ask: Callable[[State], Members]
    tell: Callable[[State, Members, Array], tuple[State, dict[str, Array]]]
    parts: Parts | str = "it does not say how it perturbs"


class Parts(NamedTuple):
    """What a strategy is made of: `make(population)` is the same strategy on other parameters."""

    population: Population
    make: Callable[[Population], Strategy]
