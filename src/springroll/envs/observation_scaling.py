"""Running statistics of observations, to feed a policy numbers of about the same size."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

_LIMIT = 10.0  # deviations
_LEAST = 1e-4  # of a variance: what never changes is not blown up


class Scaling(NamedTuple):
    """How observations were distributed so far."""

    steps: Array  # () float32, how many
    mean: Array  # (size,) float32
    variance: Array  # (size,) float32

    def apply(self, observation: Array) -> Array:
        """(observation - mean) / deviation, cut at 10 deviations; (..., size)."""
        fill = lambda x: jnp.broadcast_to(x, observation.shape)
        scaled = (observation - fill(self.mean)) * fill(1 / jnp.sqrt(self.variance + _LEAST))
        return jnp.clip(scaled, -_LIMIT, _LIMIT)

    def updated(self, sums: Array, steps: Array) -> "Scaling":
        """With `steps` further observations, whose `centered_sums` are `sums` (rows, 2, size)."""
        steps = steps.astype(jnp.float32)
        total = self.steps + steps
        first, second = jnp.sum(sums, axis=0)
        shift = first / total
        square = (self.variance * self.steps + second) / total
        return Scaling(total, self.mean + shift, jnp.maximum(square - jnp.square(shift), 0.0))


def fresh(size: int) -> Scaling:
    """No observation yet: they pass as they are."""
    return Scaling(jnp.float32(0), jnp.zeros(size), jnp.ones(size))


def centered_sums(observation: Array, scaling: Scaling | None) -> Array:
    """(rows, 2, size): observations less the mean so far, and their squares."""
    if scaling is not None:
        observation = observation - jnp.broadcast_to(scaling.mean, observation.shape)
    return jnp.stack([observation, jnp.square(observation)], axis=1)
