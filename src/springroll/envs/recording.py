"""One episode, kept state by state, to be looked at."""

from typing import Any

import jax

from springroll.envs.action_choice import choose
from springroll.envs.environment import State
from springroll.envs.observation_scaling import Scaling
from springroll.envs.rollout import Rollout, step_keys


def recorded(
    rollout: Rollout, params: Any, key: jax.Array, scaling: Scaling | None = None, most: int = 500
) -> tuple[list[State], float]:
    """The states of an episode of `params` on the host, the first one included, and its return.

    Args:
        most: steps, whatever the environment allows.
    """
    environment = rollout.environment
    params = rollout.ready(params)

    @jax.jit
    def step(time: int, state: State, observation: jax.Array) -> Any:
        drawn, moved = step_keys(jax.random.key_data(key), time)
        seen = observation if scaling is None else scaling.apply(observation)
        mask = environment.action_mask(state) if environment.action_mask else None
        outputs = rollout.policy.apply(params, seen)
        to_draw = None if rollout.deterministic else drawn
        return environment.step(moved, state, choose(environment.actions, outputs, to_draw, mask))

    state, observation = jax.jit(environment.reset)(key)
    states, total = [jax.device_get(state)], 0.0
    for time in range(min(most, environment.max_steps)):
        found = step(time, state, observation)
        state, observation = found.state, found.observation
        states.append(jax.device_get(state))
        total += float(found.reward)
        if found.terminated or found.truncated:
            break
    return states, total
