"""Environments of navix: MiniGrid's rooms, doors, keys, obstacles.

The observation is the whole grid row by row, three small integers per cell (what is there, its
colour, its state), times 0.1. The reward is 1 at the goal.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from springroll.envs.environment import Discrete, Environment, EnvState, Step
from springroll.envs.suite_calls import flat, foreign, imported, raw, version
from springroll.envs.suites import shown

SCALE = 0.1  # the integers go up to 10


def names() -> list[str]:
    return list(imported("navix").registry())


@foreign
def build(name: str, max_steps: int = 100) -> Environment:
    """navix's environment of that name.

    Args:
        max_steps: steps of an episode at most. Versions of navix differ in theirs (0.7 has 100,
            4.0 has four times the number of cells), so it is always given here.
    """
    env = imported("navix").make(name, max_steps=max_steps)

    @foreign
    def reset(key: Array) -> tuple[EnvState, Array]:
        timestep = env.reset(raw(key))
        return _carried(timestep), flat(timestep.observation) * SCALE

    @foreign
    def step(key: Array, state: EnvState, action: Array) -> Step:
        del key  # navix keeps its own
        timestep = env._step(state, action)  # `step` would reset by itself
        return Step(
            _carried(timestep),
            flat(timestep.observation) * SCALE,
            timestep.reward.astype(jnp.float32),
            timestep.is_termination(),
            timestep.is_truncation(),
        )

    @foreign
    def frame(state: EnvState) -> np.ndarray:
        cache = imported("navix.rendering.cache").RenderingCache.init(state.state.grid)
        rgb = imported("navix.observations").rgb
        return np.asarray(rgb(state.state.replace(cache=cache)))

    return Environment(
        name=shown("navix", name),
        observation_size=math.prod(env.observation_space.shape),
        actions=Discrete(len(env.action_set)),
        max_steps=max_steps,
        reset=reset,
        step=step,
        frame=frame,
        version=version("navix"),
    )


def _carried(timestep: Any) -> Any:
    """What a step needs of the one before: neither the observation nor the tiles for drawing,
    which are nearly all of the bytes."""
    return timestep.replace(observation=None, state=timestep.state.replace(cache=None))
