"""Momentum without memory: a moving average of estimates that are made again from their noise.

The estimate of a generation is a function of its seed and its fitness. So the momentum of SGD,
g_t + b g_(t-1) + b^2 g_(t-2) + ..., needs no array of the size of the weights: the state keeps what
every member of the last K generations weighed, K N numbers, and their noise is drawn again. The sum
is cut after K generations, which leaves out a share b^K of it.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from springroll.errors import expect
from springroll.evolve.members import Members
from springroll.evolve.update import direction
from springroll.ranges import COUNT, SHARE, check_number

LEFT_OUT = 0.01  # of the sum, by default


class Momentum(NamedTuple):
    """A moving average of the estimates.

    decay: b, from 0 to below 1. generations: K, the newest one included.
    """

    decay: float
    generations: int

    @classmethod
    def of(cls, decay: float) -> "Momentum":
        """With as many generations as leave out a hundredth.

        >>> Momentum.of(0.9)
        Momentum(decay=0.9, generations=44)
        """
        check_number("the decay of momentum", decay, float, SHARE)
        return cls(decay, max(1, math.ceil(math.log(LEFT_OUT) / math.log(decay))) if decay else 1)


class Past(NamedTuple):
    """The generations before this one, the newest first.

    weights: (K - 1, N) float32, what the perturbation of each member was multiplied with; epochs:
    (K - 1,) int32, of their noise.
    """

    weights: Array
    epochs: Array


def check_momentum(momentum: Momentum | None) -> None:
    """Raise InputError for a decay or a number of generations that cannot be."""
    if momentum is None:
        return
    expect(
        isinstance(momentum, Momentum), "momentum", momentum, "a Momentum, such as Momentum.of(0.9)"
    )
    decay, generations = momentum
    check_number("the decay of momentum", decay, float, SHARE)
    check_number("the number of generations of momentum", generations, int, COUNT)


def no_past(momentum: Momentum, members: int) -> Past:
    """What a run begins with."""
    before = momentum.generations - 1
    return Past(jnp.zeros((before, members), jnp.float32), jnp.zeros((before,), jnp.int32))


def past_direction(momentum: Momentum, past: Past, members: Members) -> dict[str, Array]:
    """sum_j b^j g_(t-j) over the generations before this one, by parameter, float32.

    Args:
        momentum: b and K.
        past: the generations before.
        members: of this generation; their noise is not used.
    """
    ages = jnp.arange(1, momentum.generations, dtype=jnp.float32)
    faded = past.weights * jnp.float32(momentum.decay) ** ages[:, None]
    of = lambda weights, epoch: direction(replace(members, factors=None, epoch=epoch), weights)

    def add(total: dict[str, Array], one: tuple[Array, Array]) -> tuple[dict[str, Array], None]:
        return jax.tree.map(jnp.add, total, of(*one)), None

    shapes = jax.eval_shape(of, faded[0], past.epochs[0])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return lax.scan(add, zeros, (faded, past.epochs))[0]


def passed(past: Past, weights: Array, epoch: Array) -> Past:
    """The past after one more generation, whose members weighed `weights` (N,)."""
    newer = lambda new, old: jnp.concatenate([new[None].astype(old.dtype), old])[: old.shape[0]]
    return Past(newer(weights, past.weights), newer(epoch, past.epochs))
