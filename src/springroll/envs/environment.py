"""What an environment is: a few pure functions, the same for every suite.

An episode begins with `reset` and ends when a step says `terminated` or `truncated`, or after
`max_steps` steps, whichever is first; whoever steps counts them. Nothing resets itself: a step
after the end is allowed and means nothing.

The actions an environment takes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from jax import Array

from springroll.trees import PyTree


@dataclass(frozen=True)
class Discrete:
    """One of `count` actions, an int32 scalar."""

    count: int

    @property
    def outputs(self) -> int:
        """Numbers that a policy says about an action: logits."""
        return self.count

    def __str__(self) -> str:
        return f"discrete {self.count}"


@dataclass(frozen=True)
class MultiDiscrete:
    """Several choices at once, int32 (len(counts),): one of counts[i] each."""

    counts: tuple[int, ...]

    @property
    def outputs(self) -> int:
        return sum(self.counts)

    def __str__(self) -> str:
        return f"multi-discrete {', '.join(map(str, self.counts))}"


@dataclass(frozen=True)
class Box:
    """Real numbers, float32 (size,), each between its bounds."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def size(self) -> int:
        return len(self.low)

    @property
    def outputs(self) -> int:
        """Means, and after them logarithms of standard deviations."""
        return 2 * self.size

    def __str__(self) -> str:
        spans = {f"{low:g} to {high:g}" for low, high in zip(self.low, self.high, strict=True)}
        return f"box {self.size} of {spans.pop() if len(spans) == 1 else 'several ranges'}"


Actions = Discrete | MultiDiscrete | Box


EnvState: TypeAlias = PyTree
"""What an environment carries from step to step; arrays of any structure."""


class Step(NamedTuple):
    """What one step leads to."""

    state: EnvState
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
    reset: Callable[[Array], tuple[EnvState, Array]]
    """`reset(key)`: the first state and observation."""
    step: Callable[[Array, EnvState, Array], Step]
    """`step(key, state, action)`; the action as `actions` says."""
    action_mask: Callable[[EnvState], Array] | None = None
    """`action_mask(state)`: which actions are allowed, bool, of the shape of the logits; None
    where all of them always are."""
    frame: Callable[[EnvState], np.ndarray] | None = None
    """`frame(state)`: a picture, (height, width, 3) uint8; on the host, of one state."""
    animate: Callable[[list[EnvState]], list[np.ndarray]] | None = None
    """The same for suites that draw whole episodes: states to pictures. One of the two or none."""
    version: str = ""
    """The suite and its version, such as "navix 0.7.4": a run goes on with the same one only."""
