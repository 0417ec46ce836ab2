"""Environments of gymnax: classic control, bsuite, MinAtar.

Observations are flattened row by row and not scaled.
"""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from springroll.envs.environment import Actions, Box, Discrete, Environment, EnvState, Step
from springroll.envs.frames import drawn_gif
from springroll.envs.suite_calls import (
    arrays,
    flat,
    flat_size,
    foreign,
    imported,
    quiet,
    raw,
    version,
)
from springroll.envs.suites import shown

NOT_OFFERED = {"MNISTBandit-bsuite"}  # downloads its data


def names() -> list[str]:
    return [name for name in imported("gymnax").registered_envs if name not in NOT_OFFERED]


@foreign
def build(name: str, max_steps: int | None = None) -> Environment:
    """gymnax's environment of that name.

    Args:
        max_steps: steps of an episode at most; gymnax's own number unless given.
    """
    env, params = imported("gymnax").make(name)
    if max_steps is not None:
        params = params.replace(max_steps_in_episode=max_steps)
    space = env.action_space(params)
    actions = _actions(space)
    # Since 1.0 `step_env` says terminated; before it said done, which the time limit was part of.
    told_apart = hasattr(env, "is_truncated")

    @foreign
    def reset(key: Array) -> tuple[EnvState, Array]:
        observation, state = env.reset_env(raw(key), params)
        return arrays(state), flat(observation)

    @foreign
    def step(key: Array, state: EnvState, action: Array) -> Step:
        action = action.reshape(space.shape)
        observation, state, reward, over, _ = env.step_env(raw(key), state, action, params)
        late = jnp.asarray(state.time >= params.max_steps_in_episode)
        over = jnp.asarray(over, bool).reshape(())
        return Step(
            arrays(state),
            flat(observation),
            jnp.asarray(reward, jnp.float32).reshape(()),
            over if told_apart else over & ~late,
            late,
        )

    @foreign
    def animate(states: list[EnvState]) -> list[np.ndarray]:
        for device in ("SDL_VIDEODRIVER", "SDL_AUDIODRIVER"):  # it draws with pygame
            os.environ.setdefault(device, "dummy")
        visualizer = imported("gymnax.visualize").Visualizer
        with quiet():
            return drawn_gif(lambda path: visualizer(env, params, states).animate(path))

    return Environment(
        name=shown("gymnax", name),
        observation_size=flat_size(jax.eval_shape(reset, jax.random.key(0))[1]),
        actions=actions,
        max_steps=int(params.max_steps_in_episode),  # some are floats
        reset=reset,
        step=step,
        animate=animate,
        version=version("gymnax"),
    )


def _actions(space: Any) -> Actions:
    if hasattr(space, "n"):
        return Discrete(int(space.n))
    bounds = (np.broadcast_to(np.asarray(bound), space.shape) for bound in (space.low, space.high))
    low, high = (tuple(float(each) for each in bound.ravel()) for bound in bounds)
    return Box(low, high)
