"""Where a policy, or whatever else is evolved, is scored: episodes, or calls of a function."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from springroll.envs.observation_scaling import Scaling
from springroll.envs.rollout import Rollout
from springroll.evolve.members import Members
from springroll.run.job import Explained
from springroll.run.task import Metrics, Task
from springroll.trees import PyTree

ObservationStats: TypeAlias = Scaling | None
"""How observations were distributed so far; None where they are not counted."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scorer:
    """One thing to be good at, as functions. Higher is better."""

    name: str
    description: str
    """A few words on its observations and actions."""
    init: Callable[[Array], PyTree]
    """`init(key)`: the first weights."""
    apply: tuple[Callable[[PyTree, Array], Array], int] | None = None
    """What is evolved as a function of weights and a number of inputs; None where it is no JAX."""
    initial_stats: Callable[[], ObservationStats] = lambda: None
    """What is known of observations before the first generation."""
    score: Callable[
        [PyTree, Members, ObservationStats, int],
        tuple[Array | np.ndarray, ObservationStats, Metrics],
    ]
    """`score(params, members, stats, generation)`: fitness (N,), and figures."""
    evaluate: Callable[[PyTree, Members, ObservationStats, int, bool], np.ndarray]
    """`evaluate(params, members, stats, episodes, uniform)`: returns of the weights themselves, or,
    if `uniform`, of random actions. The members lend their program only."""
    acts: bool = True
    """Whether there are actions at all."""
    steps: int
    """Environment steps of an episode at most; 1 of a function."""
    identity: Mapping[str, str] = field(default_factory=dict)
    """What must be the same when a run goes on."""
    failures: Callable[[], str] = lambda: ""
    """One line: members that could not be scored, and why; empty if there are none."""
    close: Callable[[], None] = lambda: None
    rollout: Rollout | None = None
    """How episodes are run, where that is on the device."""

    def shapes(self) -> PyTree:
        """What is evolved, as shapes."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def traced(self) -> Explained | None:
        """The policy and the shapes it takes; None where it is no JAX."""
        if self.apply is None:
            return None
        fn, inputs = self.apply
        return Explained(fn, self.shapes(), (jax.ShapeDtypeStruct((inputs,), jnp.float32),))


class Learning(NamedTuple):
    """A method on an scorer: what the loop trains, and how what it learnt acts."""

    task: Task
    rollout: Rollout | None
    weights: Callable[[PyTree, PyTree], tuple[PyTree, ObservationStats]]
    """From the loop's state and carry to what `rollout` acts by."""
    random_return: Callable[[], float | None]
    """The mean return of random actions; None where there are no actions."""
