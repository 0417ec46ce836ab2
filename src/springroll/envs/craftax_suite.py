"""Environments of Craftax and Craftax-Classic: gather, craft, survive.

Observations are Craftax's own flat vectors: the map around the player one-hot, then what it has.
Those in pixels are read row by row.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from springroll.envs.environment import Discrete, Environment, EnvState, Step
from springroll.envs.suite_calls import flat, foreign, imported, quiet, raw, version
from springroll.envs.suites import shown

PIXELS = 16  # of a block in a picture; Craftax has textures of 64, 16 and others


def names() -> list[str]:
    """Craftax keeps no registry: the four that its maker knows."""
    kinds = ("Symbolic", "Pixels")
    return [f"Craftax-{game}{kind}-v1" for game in ("", "Classic-") for kind in kinds]


@foreign
def build(name: str, max_steps: int | None = None) -> Environment:
    """Craftax's environment of that name.

    Args:
        max_steps: steps of an episode at most; 10,000 for Classic, 100,000 else, unless given.
    """
    env = imported("craftax.craftax_env").make_craftax_env_from_name(name, auto_reset=False)
    params = env.default_params
    if max_steps is not None:
        params = params.replace(max_timesteps=max_steps)

    @foreign
    def reset(key: Array) -> tuple[EnvState, Array]:
        observation, state = env.reset_env(raw(key), params)
        return state, flat(observation)

    @foreign
    def step(key: Array, state: EnvState, action: Array) -> Step:
        observation, state, reward, done, _ = env.step_env(raw(key), state, action, params)
        late = state.timestep >= params.max_timesteps
        return Step(state, flat(observation), jnp.float32(reward), done & ~late, late)

    @functools.cache
    def renderer() -> Any:
        game = "craftax_classic" if "Classic" in name else "craftax"
        with quiet():
            make = imported(f"craftax.{game}.renderer").make_craftax_pixel_renderer
            return jax.jit(make(PIXELS))

    @foreign
    def frame(state: EnvState) -> np.ndarray:
        picture = np.asarray(renderer()(state))
        return np.clip(picture * (255 if picture.max() <= 1 else 1), 0, 255).astype(np.uint8)

    return Environment(
        name=shown("craftax", name),
        observation_size=int(np.prod(env.observation_space(params).shape)),
        actions=Discrete(env.num_actions),
        max_steps=params.max_timesteps,
        reset=reset,
        step=step,
        frame=frame,
        version=version("craftax"),
    )
