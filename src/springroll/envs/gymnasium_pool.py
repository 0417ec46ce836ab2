"""Gymnasium environments as something a population is scored in.

Environments live in worker processes, several in each; the policy is ours and acts for all of them
in one batch. An environment that raises, crashes or hangs costs the member it was stepped for.
"""

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from springroll.cpu import cores
from springroll.envs.environment import Actions, Box, Discrete, MultiDiscrete
from springroll.envs.gymnasium_actor import (
    Acting,
    Actor,
    acting_for,
    population_actor,
    unperturbed_actor,
)
from springroll.envs.gymnasium_lockstep import EpisodeResults, Lockstep
from springroll.envs.observation_scaling import Scaling
from springroll.errors import InputError
from springroll.evolve.members import Members
from springroll.models.policy import Policy, PolicyNetwork
from springroll.ranges import PROCESSES, TIMEOUT, check_number
from springroll.tasks.failures import Failures, reason
from springroll.tasks.records import file_digest
from springroll.trees import PyTree
from springroll.typed_call import typed_call
from springroll.worker import Message, Worker, WorkerLost, end_all

SEATS = 512  # episodes at once


class GymnasiumPool:
    """Environments in worker processes. Made by `open_gymnasium`.

    What members score does not depend on how many processes there are.
    """

    def __init__(
        self, name: str, workers: Sequence[Worker], slots: int, seats: int, described: Message
    ) -> None:
        self.name = name
        self.observation_size: int = described["size"]
        """Numbers in an observation; its parts are in the order of the environment's spaces."""
        self.actions: Actions = _actions(described["actions"])
        self.max_steps: int = described["max_steps"]
        """Steps of an episode at most."""
        self.version: str = described["version"]
        """Of gymnasium; empty where a function of the user's makes the environments."""
        source = described["file"] and file_digest(Path(described["file"]))
        self.identity = {"environment": name, "source": self.version or source}
        """What must be the same when a run goes on."""
        self._workers, self._slots, self._seats = workers, slots, seats
        self.failures = Failures("episodes")
        """Those that could not be scored so far."""
        self._scored = False
        self._end = weakref.finalize(self, end_all, workers)

    def evaluate(
        self,
        policy: Policy | PolicyNetwork,
        params: PyTree,
        members: Members,
        seeds: np.ndarray,
        *,
        deterministic: bool = False,
        scaling: Scaling | None = None,
    ) -> tuple[np.ndarray, dict[str, float]]:
        """The mean return of every member's episodes.

        Args:
            policy: with `apply(params, observation) -> outputs`.
            params: what `members` perturb.
            seeds: (N, episodes) integers from 0 to 2^31; those of a pair should be the same.
            deterministic: take the likeliest action instead of drawing one.
            scaling: of observations.

        Returns fitness (N,) float32, NaN for members of which an episode failed, and the figures
        `env_steps`, `train_return`, `train_length` and `unscored`.

        Raises:
            InputError: not a single member could be scored, and none ever was.
        """
        acting = acting_for(policy, self.actions, deterministic=deterministic)
        return self.scored(self.episodes(acting, params, members, seeds, scaling=scaling))

    def unperturbed(
        self,
        policy: Policy | PolicyNetwork,
        params: PyTree,
        seeds: np.ndarray,
        *,
        deterministic: bool = True,
        uniform: bool = False,
        scaling: Scaling | None = None,
    ) -> np.ndarray:
        """Returns (episodes,) float32 of the weights themselves, one for each of `seeds`.

        With `uniform` any actions are taken, whatever the policy says. An episode that fails is
        begun once more, and returns NaN if it fails again.
        """
        how = {"deterministic": deterministic, "uniform": uniform}
        acting = acting_for(policy, self.actions, **how)
        actor, seeds = unperturbed_actor(acting, params, scaling), np.asarray(seeds)
        results = self._run(actor, seeds)
        self.failures.merge(results.failures)
        again = np.isnan(results.returns)
        if again.any():
            results.returns[again] = self._run(actor, seeds[again]).returns
        return results.returns

    def episodes(
        self,
        acting: Acting,
        params: PyTree,
        members: Members,
        seeds: np.ndarray,
        *,
        scaling: Scaling | None = None,
        counting: bool = False,
    ) -> EpisodeResults:
        """What came of every member's episodes, arrays (N, episodes, ...).

        With `counting` observations are summed up as `observation_scaling.centered_sums` says.
        """
        count, each = seeds.shape
        if count != members.size:
            raise ValueError(f"seeds of {count} members for {members.size}")
        actor = population_actor(acting, params, members, each, scaling)
        mean = np.zeros(self.observation_size, np.float32)
        if scaling is not None:
            mean = np.asarray(scaling.mean)
        results = self._run(actor, seeds.reshape(-1), mean if counting else None)
        shaped = lambda x: x.reshape(count, each, *x.shape[1:])
        return EpisodeResults(
            shaped(results.returns), shaped(results.lengths), shaped(results.sums), results.failures
        )

    def scored(self, results: EpisodeResults) -> tuple[np.ndarray, dict[str, float]]:
        """Fitness and figures of what `episodes` returned, see `evaluate`."""
        self.failures.merge(results.failures)
        lost = np.isnan(results.returns)
        if lost.any(axis=1).all() and not self._scored:
            raise InputError(
                f"{self.name} could not score a single member: {results.failures.kinds}"
            )
        self._scored = True
        figures = {
            "env_steps": int(results.lengths.sum()),
            "train_return": float(np.nanmean(results.returns)) if not lost.all() else float("nan"),
            "train_length": float(results.lengths[~lost].mean())
            if not lost.all()
            else float("nan"),
            "unscored": int(lost.any(axis=1).sum()),
        }
        return results.returns.mean(axis=1, dtype=np.float32), figures

    def close(self) -> None:
        """End the processes."""
        end_all(self._workers)

    def _run(
        self, actor: Actor, seeds: np.ndarray, counted: np.ndarray | None = None
    ) -> EpisodeResults:
        return Lockstep(
            self._workers,
            actor,
            seeds,
            slots=self._slots,
            size=self.observation_size,
            max_steps=self.max_steps,
            seats=self._seats,
            counted=counted,
        ).run()


@typed_call
def open_gymnasium(
    name: str,
    *,
    workers: int | None = None,
    timeout: float = 60.0,
    max_steps: int | None = None,
    seats: int = SEATS,
) -> GymnasiumPool:
    """Start the processes, and try one environment.

    Args:
        name: `gymnasium-ID` of a registered environment, or `module:function` or
            `file.py:function` of a function that makes one. That needs no more than
            `reset(seed=...)`, `step(action)`, `action_space` and, where observations are no arrays,
            `observation_space`.
        workers: processes; None: one per core.
        timeout: seconds that one call of an environment may take.
        max_steps: of an episode; None: as the environment says (`spec.max_episode_steps`, or its
            own `max_steps`), else 1,000.
        seats: episodes at once, in all processes together.

    Raises:
        InputError: there is no such environment, gymnasium is not installed, or the environment
            fails at its first step.
    """
    check_number("workers", workers or 1, int, PROCESSES)
    workers = workers or cores()
    check_number("timeout", timeout, float, TIMEOUT)
    slots = -(-seats // workers)
    module, what = "springroll.envs.gymnasium_worker", f"the environment {name}"
    make = lambda: Worker(module, name, str(slots), str(timeout), limit=timeout, what=what)
    pool = [make() for _ in range(workers)]
    try:
        described, _ = pool[0].ask({"describe": True})
        if "failed" in described:
            raise InputError(f"{name} cannot be stepped: {reason(*described['failed'][1:])}")
    except WorkerLost as lost:
        raise InputError(f"{name} cannot be stepped: {reason(lost.kind, lost.line)}") from None
    except BaseException:
        end_all(pool)
        raise
    if max_steps is not None:
        described["max_steps"] = min(max_steps, described["max_steps"])
    return GymnasiumPool(name, pool, slots, seats, described)


def _actions(described: Sequence[Any]) -> Actions:
    kind, *what = described
    if kind == "box":
        return Box(*(tuple(bounds) for bounds in what))
    return Discrete(*what) if kind == "discrete" else MultiDiscrete(tuple(*what))
