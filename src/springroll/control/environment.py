"""What an environment is: a few pure functions, the same for every suite.

An episode begins with `reset` and ends when a step says `terminated` or `truncated`, or after
`max_steps` steps, whichever is first; whoever steps counts them. Nothing resets itself: a step
after the end is allowed and means nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from jax import Array

from springroll.control.actions import Actions

State = Any  # pytree of arrays


class Step(NamedTuple):
    """What one step leads to."""

    state: State
    observation: Array  # (observation_size,) float32
    reward: Array  # () float32
    terminated: Array  # () bool: the task itself is over
    truncated: Array  # () bool: its time is


@dataclass(frozen=True, eq=False)
class Environment:
    """One task. All functions are pure, take one environment, and are mapped by `jax.vmap`."""

    name: str
    """The id by which `springroll rl --env` finds it."""
    observation_size: int
    """Numbers in an observation, which is flat and float32; its parts are in a fixed order."""
    actions: Actions
    max_steps: int
    """Steps of an episode at most."""
    reset: Callable[[Array], tuple[State, Array]]
    """`reset(key)`: the first state and observation."""
    step: Callable[[Array, State, Array], Step]
    """`step(key, state, action)`; the action as `actions` says."""
    action_mask: Callable[[State], Array] | None = None
    """`action_mask(state)`: which actions are allowed, bool, of the shape of the logits; None
    where all of them always are."""
    frame: Callable[[State], Any] | None = None
    """`frame(state)`: a picture, (height, width, 3) uint8; on the host, of one state."""
    animate: Callable[[list[State]], list[Any]] | None = None
    """The same for suites that draw whole episodes: states to pictures. One of the two or none."""
    version: str = ""
    """The suite and its version, such as "navix 0.7.4": a run goes on with the same one only."""
