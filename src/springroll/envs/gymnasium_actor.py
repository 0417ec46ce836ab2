"""Actions for the live episodes of a population: one batched call of the policy per step.

A row is one episode of one member. Rows that live sit in seats, with the factors of their members
beside them; the number of seats is a power of two, so that few programs are compiled.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from springroll.envs.action_choice import choose, uniform
from springroll.envs.environment import Actions
from springroll.envs.observation_scaling import Scaling
from springroll.evolve.members import Members
from springroll.evolve.rows import PreparedRows, prepare_rows
from springroll.models.policy import Policy, PolicyNetwork
from springroll.trees import PyTree

Seats = TypeVar("Seats")  # what an actor keeps for the rows it acts for
FEWEST = 64  # seats; with fewer, products are added up in another order and the last bit differs


def _as_they_are(params: PyTree) -> PyTree:
    return params


@dataclass(frozen=True)
class Acting:
    """How actions are chosen; hashable, so that programs are compiled once for equal ones."""

    apply: Callable[[PyTree, Array], Array]
    actions: Actions
    deterministic: bool = False  # the likeliest action instead of a drawn one
    uniform: bool = False  # any action, whatever the policy says
    ready: Callable[[PyTree], PyTree] = _as_they_are  # weights as `apply` multiplies them


def acting_for(
    policy: Policy | PolicyNetwork,
    actions: Actions,
    *,
    deterministic: bool = False,
    uniform: bool = False,
) -> Acting:
    """How a policy acts; if it has `ready`, weights are made so once and not in every step."""
    ready = getattr(policy, "ready", _as_they_are)
    return Acting(policy.apply, actions, deterministic, uniform, ready)


class Actor(NamedTuple, Generic[Seats]):
    """Who acts. Made by `population_actor` and `unperturbed_actor`."""

    seat: Callable[[np.ndarray], Seats]
    """`seat(rows)`: what `act` needs for these rows (seats,)."""
    act: Callable[[Seats, np.ndarray, np.ndarray, np.ndarray], Array | np.ndarray]
    """`act(seats, observations (seats, size), seeds (seats,), times (seats,))`: actions
    (seats, ...), as the environments' `actions` say."""


def seats_for(rows: int) -> int:
    """The least power of two, but `FEWEST` at least."""
    return max(FEWEST, 1 << (rows - 1).bit_length())


def population_actor(
    acting: Acting, params: PyTree, members: Members, episodes: int, scaling: Scaling | None = None
) -> Actor[PreparedRows]:
    """Row `i * episodes + e` is the e-th episode of member i; its action depends on the member, the
    observation, and on the episode's seed and time, from which it is drawn.
    """
    signs = np.asarray(members.perturbation.signs, np.float32)
    params = acting.ready(params)

    def seat(rows: np.ndarray) -> PreparedRows:
        member = rows // episodes
        pair = jnp.asarray(member // len(signs), jnp.int32)
        return _seated(params, members, pair, jnp.asarray(signs[member % len(signs), None]))

    def act(seats: PreparedRows, *rows: np.ndarray) -> Array:
        return _population(acting, scaling, seats, rows)

    return Actor(seat, act)


def unperturbed_actor(
    acting: Acting, params: PyTree, scaling: Scaling | None = None
) -> Actor[None]:
    """The weights themselves, in every row."""
    params = acting.ready(params)
    act = lambda _, *rows: _unperturbed(acting, params, scaling, *rows)
    return Actor(lambda rows: None, act)


@jax.jit
def _seated(params: PyTree, members: Members, pair: Array, sign: Array) -> PreparedRows:
    return prepare_rows(params, members.groups(pair), sign)


@functools.partial(jax.jit, static_argnums=0)
def _population(
    acting: Acting,
    scaling: Scaling | None,
    seats: PreparedRows,
    rows: tuple[Array, Array, Array],
) -> Array:
    observations, seeds, times = rows
    scaled = _scaled(observations, scaling)
    outputs = seats.call(acting.apply, scaled[:, None])[:, 0]
    return jax.vmap(functools.partial(_chosen, acting))(outputs, seeds, times)


@functools.partial(jax.jit, static_argnums=0)
def _unperturbed(
    acting: Acting,
    params: PyTree,
    scaling: Scaling | None,
    observations: Array,
    seeds: Array,
    times: Array,
) -> Array:
    def one(observation: Array, seed: Array, time: Array) -> Array:
        outputs = acting.apply(params, _scaled(observation, scaling))
        return _chosen(acting, outputs, seed, time)

    return jax.vmap(one)(observations, seeds, times)


def _scaled(observation: Array, scaling: Scaling | None) -> Array:
    return observation if scaling is None else scaling.apply(observation)


def _chosen(acting: Acting, outputs: Array, seed: Array, time: Array) -> Array:
    key = jax.random.fold_in(jax.random.key(seed), time)
    if acting.uniform:
        return uniform(acting.actions, key)
    return choose(acting.actions, outputs, None if acting.deterministic else key)
