"""From what a policy says to an action: drawn, or the likeliest; or any, whatever it says.

What is drawn follows from two random words by the counted noise of `evolve`, of which an action
takes nanoseconds; those of `jax.random` would cost more than a small environment.
"""

import jax
import jax.numpy as jnp
from jax import Array

from springroll.envs.environment import Actions, Box, Discrete
from springroll.noise import counter
from springroll.noise.kinds import normal_from_bits

FORBIDDEN = -1e9  # a logit that no other lets through


def choose(actions: Actions, outputs: Array, key: Array | None, mask: Array | None = None) -> Array:
    """One action from a policy's `outputs` (actions.outputs,) float32.

    Discrete choices come from a softmax over the logits; real numbers from a normal distribution
    whose mean and deviation are in units in which the bounds are -1 and 1, clipped to the bounds.

    Args:
        key: to draw with, a key of JAX or two random words; None takes the likeliest.
        mask: bool like the logits, which are allowed.
    """
    if isinstance(actions, Box):
        unit, log_deviation = outputs[: actions.size], outputs[actions.size :]
        if key is not None:
            unit = unit + jnp.exp(log_deviation) * normal_from_bits(_bits(key, actions.size))
        return _within(actions, jnp.clip(unit, -1.0, 1.0))
    if mask is not None:
        outputs = jnp.where(mask, outputs, FORBIDDEN)
    if key is not None:
        outputs = outputs + _gumbel(_bits(key, actions.outputs))
    if isinstance(actions, Discrete):
        return jnp.argmax(outputs).astype(jnp.int32)
    ends = [sum(actions.counts[: i + 1]) for i in range(len(actions.counts) - 1)]
    return jnp.stack([jnp.argmax(each).astype(jnp.int32) for each in jnp.split(outputs, ends)])


def uniform(actions: Actions, key: Array, mask: Array | None = None) -> Array:
    """Any allowed action, all equally likely: what a policy is to be better than."""
    if isinstance(actions, Box):
        return _within(actions, 2.0 * _unit(_bits(key, actions.size)) - 1.0)
    return choose(actions, jnp.zeros(actions.outputs), key, mask)


def _bits(key: Array, size: int) -> Array:
    """Random words (size,)."""
    words = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    return counter.bits(words, jnp.zeros(1, jnp.uint32), size)[0]


def _unit(bits: Array) -> Array:
    """Between 0 and 1, neither of them."""
    return ((bits >> 8).astype(jnp.float32) + 0.5) * jnp.float32(2.0**-24)


def _gumbel(bits: Array) -> Array:
    return -jnp.log(-jnp.log(_unit(bits)))


def _within(actions: Box, unit: Array) -> Array:
    """From -1 to 1 to between the bounds."""
    low, high = jnp.asarray(actions.low), jnp.asarray(actions.high)
    return low + (unit + 1.0) * (high - low) * 0.5
