"""Environments of Kinetix: its hand-made levels in two-dimensional physics.

Observations are Kinetix's flat symbolic ones; actions the powers of four motors and two thrusters.
The first state of a level is always the same.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from springroll.envs.environment import Box, Environment, EnvState, Step
from springroll.envs.suite_calls import arrays, flat, flat_size, foreign, imported, raw, version
from springroll.envs.suites import shown


def names() -> list[str]:
    """Such as "s/h1_thrust_over_ball": the files of the levels."""
    from importlib.resources import files

    levels = files("kinetix") / "levels"
    return sorted(
        f"{size.name}/{level.name.removesuffix('.json')}"
        for size in levels.iterdir()
        if size.is_dir()
        for level in size.iterdir()
        if level.name.endswith(".json")
    )


@foreign
def build(name: str, max_steps: int = 256) -> Environment:
    """The level of that name, with Kinetix's own dense reward.

    Args:
        max_steps: steps of an episode at most.
    """
    kinetix = imported("kinetix.environment")  # first: its modules import each other in a circle
    level, static, params = imported("kinetix.util.saving").load_from_json_file(name)

    params = params.replace(max_timesteps=max_steps)
    env = kinetix.make_kinetix_env(
        kinetix.ActionType.CONTINUOUS,
        kinetix.ObservationType.SYMBOLIC_FLAT,
        reset_fn=lambda _: level,
        env_params=params,
        static_env_params=static,
        auto_reset=False,
    )
    size = static.num_motor_bindings + static.num_thruster_bindings

    @foreign
    def reset(key: Array) -> tuple[EnvState, Array]:
        observation, state = env.reset_env(raw(key), params, None)
        return arrays(state), flat(observation)

    @foreign
    def step(key: Array, state: EnvState, action: Array) -> Step:
        observation, state, reward, done, _ = env.step_env(raw(key), state, action, params)
        late = state.timestep >= max_steps
        return Step(arrays(state), flat(observation), jnp.float32(reward), done & ~late, late)

    @functools.cache
    def renderer() -> Any:
        make = imported("kinetix.render.renderer_pixels").make_render_pixels
        return jax.jit(make(params, static.replace(downscale=2)))

    @foreign
    def frame(state: EnvState) -> np.ndarray:
        return np.rot90(np.asarray(renderer()(state))).clip(0, 255).astype(np.uint8)

    return Environment(
        name=shown("kinetix", name),
        observation_size=flat_size(jax.eval_shape(reset, jax.random.key(0))[1]),
        actions=Box((-1.0,) * size, (1.0,) * size),
        max_steps=max_steps,
        reset=reset,
        step=step,
        frame=frame,
        version=version("kinetix-env"),
    )
