"""Episodes of any environment with uniform actions, in one compiled loop."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from springroll.envs.action_choice import uniform
from springroll.envs.environment import Environment, EnvState


class Played(NamedTuple):
    """Every step of an episode that goes on after its end."""

    actions: Array
    observations: Array
    rewards: Array
    terminated: Array
    truncated: Array
    states: EnvState  # before each step


def play(env: Environment, key: Array, steps: int) -> Played:
    """`steps` steps with allowed actions, all alike likely; step t has `step_key(key, t)`."""
    first, observation = env.reset(key)

    def turn(state: EnvState, time: Array) -> tuple[EnvState, Played]:
        drawn, moved = jax.random.split(step_key(key, time))
        mask = env.action_mask(state) if env.action_mask else None
        action = uniform(env.actions, drawn, mask)
        step = env.step(moved, state, action)
        assert step.observation.shape == (env.observation_size,) == observation.shape
        assert step.observation.dtype == step.reward.dtype == jnp.float32 == observation.dtype
        assert step.terminated.dtype == step.truncated.dtype == jnp.bool_
        assert step.reward.shape == step.terminated.shape == step.truncated.shape == ()
        seen = (action, step.observation, step.reward, step.terminated, step.truncated, state)
        return step.state, Played(*seen)

    return lax.scan(turn, first, jnp.arange(steps))[1]


def step_key(key: Array, time: Array | int) -> Array:
    return jax.random.fold_in(key, time)
