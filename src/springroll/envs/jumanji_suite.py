"""Environments of jumanji: games and combinatorial problems.

Observations are their fields in the order jumanji declares them, each row by row, the mask of
allowed actions included; counters that have a largest value are divided by it. Where a mask is of
all combinations of several choices, one action is one combination.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from springroll.envs.environment import (
    Actions,
    Box,
    Discrete,
    Environment,
    EnvState,
    MultiDiscrete,
    Step,
)
from springroll.envs.frames import drawn_gif
from springroll.envs.suite_calls import (
    accepts,
    flat,
    flat_size,
    foreign,
    imported,
    quiet,
    raw,
    version,
)
from springroll.envs.suites import shown

NOT_OFFERED = {"Sokoban-v0"}  # downloads its levels
# Steps at most of those without a time limit. An action of Game2048 may change nothing, so that
# a policy can repeat it for ever; every other one ends by itself.
LONGEST = {"Knapsack-v1": 50, "TSP-v1": 20}
UNLIMITED = 1000


class _State(NamedTuple):
    """jumanji's state, and which actions it allows (None: all)."""

    inner: EnvState
    mask: Array | None


def names() -> list[str]:
    return sorted(imported("jumanji").registered_environments() - NOT_OFFERED)


@foreign
def build(name: str, max_steps: int | None = None) -> Environment:
    """jumanji's environment of that name.

    Args:
        max_steps: steps of an episode at most; the time limit jumanji has, unless given.
    """
    registration = imported("jumanji.registration")
    maker = registration.load(registration._REGISTRY[name].entry_point)
    limited = max_steps is not None and accepts(maker, "time_limit")
    env = registration.make(name, **({"time_limit": max_steps} if limited else {}))
    first = jax.eval_shape(lambda: env.reset(jax.random.PRNGKey(0))[1].observation)
    scales = _scales(env, first)

    if max_steps is None:
        max_steps = int(getattr(env, "time_limit", LONGEST.get(name, UNLIMITED)))
    mask_shape = getattr(getattr(first, "action_mask", None), "shape", None)
    actions, to_suite = _actions(env.action_spec, mask_shape)
    masked = mask_shape is not None and math.prod(mask_shape) == actions.outputs

    def carried(state: EnvState, observation: Any) -> _State:
        return _State(state, observation.action_mask.ravel() if masked else None)

    def observed(observation: Any) -> Array:
        return flat(jax.tree.map(lambda leaf, scale: leaf * scale, observation, scales))

    @foreign
    def reset(key: Array) -> tuple[_State, Array]:
        state, timestep = env.reset(raw(key))
        return carried(state, timestep.observation), observed(timestep.observation)

    @foreign
    def step(key: Array, state: _State, action: Array) -> Step:
        del key  # jumanji keeps its own
        inner, timestep = env.step(state.inner, to_suite(action))
        # The discount tells the end of the task from that of the time; teams have one per agent.
        ended = timestep.last()
        over = jnp.all(timestep.discount == 0)
        return Step(
            carried(inner, timestep.observation),
            observed(timestep.observation),
            jnp.sum(timestep.reward).astype(jnp.float32),
            ended & over,
            ended & ~over,
        )

    @foreign
    def animate(states: list[_State]) -> list[np.ndarray]:
        inner = [state.inner for state in states]
        with quiet():
            return drawn_gif(lambda path: env.animate(inner, save_path=path))

    return Environment(
        name=shown("jumanji", name),
        observation_size=flat_size(first),
        actions=actions,
        max_steps=max_steps,
        reset=reset,
        step=step,
        action_mask=(lambda state: state.mask) if masked else None,
        animate=animate,
        version=version("jumanji"),
    )


def _scales(env: Any, observation: Any) -> Any:
    """One factor per leaf of an observation: 1, or 1 over the largest value of a counter."""
    specs = imported("jumanji.specs")

    def factor(path: Any, _: Any) -> float:
        spec: Any = env.observation_spec
        for entry in path:
            spec = getattr(spec, "_specs", {}).get(getattr(entry, "name", None))
        counter = isinstance(spec, specs.DiscreteArray)
        return 1 / max(int(spec.maximum), 1) if counter else 1.0

    return jax.tree_util.tree_map_with_path(factor, observation)


def _actions(spec: Any, mask_shape: tuple[int, ...] | None) -> tuple[Actions, Any]:
    """Our description of an action, and the way from one to jumanji's."""
    specs = imported("jumanji.specs")
    if isinstance(spec, specs.DiscreteArray):
        return Discrete(int(spec.num_values)), lambda action: action.astype(spec.dtype)
    if isinstance(spec, specs.MultiDiscreteArray) or jnp.issubdtype(spec.dtype, jnp.integer):
        most = getattr(spec, "num_values", None)
        most = np.asarray(spec.maximum) + 1 if most is None else np.asarray(most)
        counts = tuple(int(count) for count in np.broadcast_to(most, spec.shape).ravel())
        if mask_shape == counts:
            return Discrete(math.prod(counts)), lambda action: jnp.stack(
                jnp.unravel_index(action, counts)
            ).astype(spec.dtype)
        return MultiDiscrete(counts), lambda action: action.reshape(spec.shape).astype(spec.dtype)
    low, high = (
        tuple(float(each) for each in np.broadcast_to(bound, spec.shape).ravel())
        for bound in (spec.minimum, spec.maximum)
    )
    return Box(low, high), lambda action: action.reshape(spec.shape).astype(spec.dtype)
