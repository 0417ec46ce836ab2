"""Our environments as rejax wants them: gymnax's older interface, where episodes begin anew.

rejax 0.1.3 steps environments by `reset(key, params)` and `step(key, state, action, params)` with
five results, whatever version of gymnax is installed. This is the only place that resets by itself.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random

from springroll.envs.action_choice import choose
from springroll.envs.environment import Box, Discrete, Environment, EnvState
from springroll.errors import InputError


class Episode(NamedTuple):
    """An environment's state and how its episode goes."""

    state: EnvState
    steps: Array  # () int32, so far
    so_far: Array  # () float32, its return
    newest: Array  # () float32, the return of the newest whole episode
    ended: Array  # () int32, whole episodes


class Bridge:
    """`environment` for rejax. Where actions are masked, the mask follows the observation, 1 for
    what is allowed and -1 for what is not: a policy that is trained sees nothing else.

    Raises:
        InputError: actions that rejax's PPO has no distribution for.
    """

    default_params = None

    def __init__(self, environment: Environment):
        if not isinstance(environment.actions, Discrete | Box):
            raise InputError(
                f"the method ppo chooses one action or real numbers; {environment.name} takes "
                f"{environment.actions}; use the method eggroll or openes"
            )
        self.environment = environment

    def __deepcopy__(self, _: dict) -> "Bridge":
        return self  # rejax copies its config, which would copy the suite behind the functions

    @property
    def masked(self) -> int:
        """How many numbers of an observation are the mask."""
        return 0 if self.environment.action_mask is None else self.environment.actions.outputs

    def observation_space(self, params: None) -> Any:
        from gymnax.environments import spaces

        size = self.environment.observation_size + self.masked
        return spaces.Box(-np.inf, np.inf, (size,))

    def action_space(self, params: None) -> Any:
        from gymnax.environments import spaces

        actions = self.environment.actions
        if isinstance(actions, Discrete):
            return spaces.Discrete(actions.count)
        assert isinstance(actions, Box)
        return spaces.Box(-1.0, 1.0, (actions.size,))

    def reset(self, key: Array, params: None) -> tuple[Array, Episode]:
        state, observation = self.environment.reset(key)
        zero, nothing = jnp.int32(0), jnp.float32(0)
        return self.with_mask(state, observation), Episode(state, zero, nothing, nothing, zero)

    def step(
        self, key: Array, episode: Episode, action: Array, params: None
    ) -> tuple[Array, Episode, Array, Array, dict[str, Array]]:
        step_key, reset_key = random.split(key)
        step = self.environment.step(step_key, episode.state, self.meant(action))
        steps = episode.steps + 1
        so_far = episode.so_far + step.reward
        done = step.terminated | step.truncated | (steps >= self.environment.max_steps)

        def anew(_: tuple[Array, EnvState, Array]) -> tuple[Array, EnvState, Array]:
            return (jnp.bool_(False), *self.environment.reset(reset_key))

        # A loop of one round at most: mapped over environments, it costs a reset only in the steps
        # in which some episode ended, where a select would reset all of them in every step.
        start = (done, step.state, step.observation)
        _, state, observation = lax.while_loop(lambda carry: carry[0], anew, start)
        after = Episode(
            state,
            jnp.where(done, 0, steps),
            jnp.where(done, 0, so_far),
            jnp.where(done, so_far, episode.newest),
            episode.ended + done.astype(jnp.int32),
        )
        return self.with_mask(state, observation), after, step.reward, done, {}

    def meant(self, action: Array) -> Array:
        """The action in the environment's units; rejax's real numbers are from -1 to 1."""
        actions = self.environment.actions
        if isinstance(actions, Discrete):
            return action
        return choose(actions, jnp.concatenate([action, jnp.zeros_like(action)]), None)

    def with_mask(self, state: EnvState, observation: Array) -> Array:
        """What policy and value are given."""
        if self.environment.action_mask is None:
            return observation
        mask = self.environment.action_mask(state).reshape(-1)
        return jnp.concatenate([observation, jnp.where(mask, 1.0, -1.0)])
