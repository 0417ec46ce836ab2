"""Tiny environments for the tests of PPO, whose every number can be foretold."""

import jax
import jax.numpy as jnp

from springroll.envs.environment import Box, Discrete, Environment, Step

LENGTH, LIMIT = 3, 4


def countdown(ends=LENGTH):
    """The observation counts the steps from 10 * the key's number; every step is worth 1, 2, ...

    Episodes end by themselves after `ends` steps, if LIMIT does not cut them before.
    """

    def reset(key):
        first = jnp.float32(10.0) * jax.random.randint(key, (), 0, 10).astype(jnp.float32)
        state = {"steps": jnp.int32(0), "first": first}
        return state, first[None]

    def step(key, state, action):
        steps = state["steps"] + 1
        state = state | {"steps": steps}
        seen = state["first"] + steps.astype(jnp.float32)
        over = steps >= ends
        return Step(state, seen[None], steps.astype(jnp.float32), over, jnp.bool_(False))

    return Environment("countdown", 1, Discrete(2), LIMIT, reset, step)


def forbidden_choice(count=3):
    """Action 2 is best, but forbidden; action 1 is second best. One step is an episode."""

    def reset(key):
        return jnp.int32(0), jnp.ones(2)

    def step(key, state, action):
        reward = jnp.asarray([0.0, 1.0, 100.0])[action]
        return Step(state, jnp.ones(2), reward, jnp.bool_(True), jnp.bool_(False))

    allowed = lambda state: jnp.array([True, True, False])
    return Environment("forbidden", 2, Discrete(count), LIMIT, reset, step, action_mask=allowed)


def throw(low=2.0, high=6.0):
    """The reward is minus the distance of a real number from 5.5; two steps are an episode."""

    def reset(key):
        return jnp.int32(0), jax.random.normal(key, (2,)) * 50.0

    def step(key, state, action):
        reward = -jnp.abs(action[0] - 5.5)
        seen = jax.random.normal(key, (2,)) * 50.0
        return Step(state + 1, seen, reward, jnp.bool_(False), state >= 1)

    return Environment("throw", 2, Box((low,), (high,)), 10, reset, step, version="toy 1")
