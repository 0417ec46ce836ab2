"""Environments of brax: bodies with joints, moved by motors.

Observations are brax's own. Brax itself has no time limit; its training uses 1,000 steps.
"""

import ctypes.util
import os
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from springroll.envs.environment import Box, Environment, EnvState, Step
from springroll.envs.suite_calls import arrays, flat_size, foreign, imported, raw, version
from springroll.envs.suites import shown

# brax's stand-in for its own tests, and one that calls jax in a way of before 0.10
NOT_OFFERED = {"fast", "swimmer"}


def names() -> list[str]:
    return [name for name in _environments()._envs if name not in NOT_OFFERED]


@foreign
def build(name: str, max_steps: int = 1000, backend: str = "generalized") -> Environment:
    """brax's environment of that name.

    Args:
        max_steps: steps of an episode at most.
        backend: how motion is computed: "generalized", "spring", "positional" or "mjx".
    """
    env = _environments().get_environment(name, backend=backend)

    @foreign
    def reset(key: Array) -> tuple[EnvState, Array]:
        state = arrays(env.reset(raw(key)))
        return state, state.obs

    @foreign
    def step(key: Array, state: EnvState, action: Array) -> Step:
        del key  # brax keeps its own where it needs one
        state = arrays(env.step(state, action))
        return Step(state, state.obs, state.reward, state.done > 0, jnp.bool_(False))

    @foreign
    def animate(states: list[EnvState]) -> list[np.ndarray]:
        bodies = [state.pipeline_state for state in states]
        return list(imported("brax.io.image").render_array(env.sys, bodies))

    size = env.action_size
    return Environment(
        name=shown("brax", name),
        # brax would find its own size by resetting, operation by operation
        observation_size=flat_size(jax.eval_shape(reset, jax.random.key(0))[1]),
        actions=Box((-1.0,) * size, (1.0,) * size),
        max_steps=max_steps,
        reset=reset,
        step=step,
        animate=animate,
        version=f"{version('brax')} {backend}",
    )


def _environments() -> Any:
    """`brax.envs`. MuJoCo, which draws for it, chooses how to while it is imported: through EGL
    where there is no display."""
    headless = sys.platform == "linux" and not os.environ.get("DISPLAY")
    chosen = "MUJOCO_GL" in os.environ
    if headless and not chosen and ctypes.util.find_library("EGL"):
        os.environ["MUJOCO_GL"] = "egl"
    try:
        # MuJoCo would write what it deprecates into a file in the current folder.
        imported("mujoco").set_mju_user_warning(lambda _: None)
    finally:
        if not chosen:
            os.environ.pop("MUJOCO_GL", None)
    return imported("brax.envs")
