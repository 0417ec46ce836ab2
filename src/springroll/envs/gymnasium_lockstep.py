"""Episodes in worker processes, all live ones a step at a time.

In a round all live rows get their actions from one call of the policy, and every process steps its
environments and answers with one message. A row that is over leaves its seat to one that waits; the
factors of the newly seated are gathered together, when enough seats are free.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from springroll.envs.gymnasium_actor import Actor, seats_for
from springroll.ranges import LARGEST
from springroll.tasks.failures import Failures
from springroll.worker import IDLE, Message, Worker, WorkerLost

GIVE_UP = 32  # processes lost one after the other, without a single answer


class EpisodeResults(NamedTuple):
    """What came of every row."""

    returns: np.ndarray  # (rows,) float32, sums of rewards; NaN where the episode failed
    lengths: np.ndarray  # (rows,) int32, steps; 0 where it failed
    sums: (
        np.ndarray
    )  # (rows, 2, size) float32, see `observation_scaling.centered_sums`; size 0 if not asked for
    failures: Failures


class Lockstep:
    """Rows on their way through their episodes.

    A process that is lost costs the row it was at; its other rows begin again. Which row sits where
    depends on the lengths of episodes and not on how many processes there are.

    Args:
        workers: processes of `gymnasium_worker`, with `slots` slots each.
        actor: who acts.
        seeds: (rows,) of episodes.
        size: of an observation.
        max_steps: of an episode.
        seats: rows at once, at most all slots together.
        counted: (size,) what observations are compared with in `sums`; None: they are not summed.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        actor: Actor,
        seeds: np.ndarray,
        *,
        slots: int,
        size: int,
        max_steps: int,
        seats: int,
        counted: np.ndarray | None = None,
    ) -> None:
        rows = len(seeds)
        self._workers, self._actor, self._seeds = workers, actor, seeds.astype(np.int64)
        self._max_steps, self._seats, self._counted = max_steps, seats, counted
        self._free = [[*range(slots)][::-1] for _ in workers]
        self._waiting = deque(range(rows))
        self._worker: np.ndarray = np.full(rows, -1, np.int64)  # where a row's environment is
        self._slot: np.ndarray = np.full(rows, -1, np.int32)
        self._row: np.ndarray = np.zeros(0, np.int64)  # who sits in a seat
        self._live: np.ndarray = np.zeros(0, bool)
        self._observations: np.ndarray = np.zeros((0, size), np.float32)
        self._returns: np.ndarray = np.zeros(rows)
        self._lengths: np.ndarray = np.zeros(rows, np.int32)
        self._sums: np.ndarray = np.zeros((rows, 2, size if counted is not None else 0), np.float32)
        self._failures = Failures("episodes")
        self._in_vain = 0  # processes lost since the last answer

    def run(self) -> EpisodeResults:
        """Until all episodes are over."""
        while self._waiting or self._live.any():
            if self._due():
                self._reseat()
            if self._live.any():
                self._step()
        too_large = np.abs(self._returns) > LARGEST
        if too_large.any():
            said = f"the return is {self._returns[too_large][0]:g}; expected a finite float"
            self._failures.add("nan", said, int(too_large.sum()))
            self._returns[too_large] = np.nan
        failed = np.isnan(self._returns)
        self._lengths[failed], self._sums[failed] = 0, 0
        returns = self._returns.astype(np.float32)
        return EpisodeResults(returns, self._lengths, self._sums, self._failures)

    def _due(self) -> bool:
        """Whether seats are to be given anew: a quarter is free for others, or half for nobody."""
        live = int(self._live.sum())
        if self._waiting:
            return live == 0 or self._seats - live >= max(1, self._seats // 4)
        return seats_for(live) < len(self._row)

    def _reseat(self) -> None:
        """Those that live stay, in order, and some that waited begin their episodes."""
        for index, worker in enumerate(self._workers):
            if not worker.alive:
                self._lost(index, WorkerLost("crashed", IDLE))  # killed while nobody looked
                worker.start()
        stay = np.flatnonzero(self._live)
        count = min(len(self._waiting), self._seats - len(stay))
        begin = np.array([self._waiting.popleft() for _ in range(count)], np.int64)
        row = np.concatenate([self._row[stay], begin])
        seats = seats_for(len(row))
        fill: Callable[[np.ndarray], np.ndarray] = lambda x: np.concatenate(
            [x, np.zeros((seats - len(x), *x.shape[1:]), x.dtype)]
        )
        new = np.zeros((count, self._observations.shape[1]), np.float32)
        self._observations = fill(np.concatenate([self._observations[stay], new]))
        self._live = fill(np.ones(len(row), bool))
        self._row = fill(row)
        self._begin(np.arange(len(stay), len(row)))
        self._seated = self._actor.seat(self._row)

    def _begin(self, seats: np.ndarray) -> None:
        """Reset environments for the rows in these seats, each in the process with most slots."""
        rows = self._row[seats]
        for row in rows:
            most = max(range(len(self._free)), key=lambda index: len(self._free[index]))
            self._worker[row], self._slot[row] = most, self._free[most].pop()
            self._returns[row], self._lengths[row], self._sums[row] = 0, 0, 0
        self._exchange("reset", seats, self._seeds[rows])

    def _step(self) -> None:
        seeds, times = self._seeds[self._row], self._lengths[self._row]
        actions = self._actor.act(self._seated, self._observations, seeds.astype(np.uint32), times)
        seats = np.flatnonzero(self._live)
        if self._counted is not None:
            apart = self._observations[seats] - self._counted
            self._sums[self._row[seats]] += np.stack([apart, np.square(apart)], axis=1)
        self._exchange("step", seats, np.asarray(actions)[seats])

    def _exchange(self, what: str, seats: np.ndarray, values: np.ndarray) -> None:
        """One message to every process whose rows sit in `seats`, with a value for each."""
        workers, size = self._worker[self._row[seats]], self._observations.shape[1]
        parts = [(index, workers == index) for index in range(len(self._workers))]
        parts = [(index, mine) for index, mine in parts if mine.any()]
        for index, mine in parts:
            slots = self._slot[self._row[seats[mine]]]
            self._workers[index].send({what: len(slots), "size": size}, slots, values[mine])
        for index, mine in parts:
            try:
                answer, payload = self._workers[index].receive()
            except WorkerLost as lost:
                self._lost(index, lost)
                continue
            self._take_answer(what, seats[mine], answer, payload)

    def _take_answer(self, what: str, seats: np.ndarray, answer: Message, payload: bytes) -> None:
        """Take in what a process answered for these seats."""
        self._in_vain = 0
        count, rows, at = len(seats), self._row[seats], 0
        ended = np.zeros(count, bool)
        if what == "step":
            at = 9 * count
            self._returns[rows] += np.frombuffer(payload, np.float64, count)
            self._lengths[rows] += 1
            ended |= np.frombuffer(payload, np.uint8, count, 8 * count) > 0
            ended |= self._lengths[rows] >= self._max_steps
        observations = np.frombuffer(payload, np.float32, offset=at)
        self._observations[seats] = observations.reshape(count, -1)
        for place, kind, line in answer.get("failed", []):
            self._returns[rows[place]] = np.nan
            self._failures.add(kind, line)
            ended[place] = True
        self._leave(seats[ended])

    def _leave(self, seats: np.ndarray) -> None:
        self._live[seats] = False
        for row in self._row[seats].tolist():
            self._free[self._worker[row]].append(int(self._slot[row]))

    def _lost(self, index: int, lost: WorkerLost) -> None:
        """One row is to blame, or has bad luck; the others of the process begin again."""
        seats = np.flatnonzero(self._live & (self._worker[self._row] == index))
        if not len(seats):
            return
        rows = self._row[seats]
        at_it = np.flatnonzero(self._slot[rows] == lost.item)
        unlucky = rows[at_it[0] if len(at_it) else 0]
        self._leave(seats)
        self._returns[unlucky] = np.nan
        self._failures.add(lost.kind, lost.line)
        self._waiting.extendleft(reversed(rows[rows != unlucky].tolist()))
        self._in_vain += 1
        if self._in_vain >= max(GIVE_UP, len(self._returns) // 4):
            self._returns[[*self._waiting]] = np.nan
            self._failures.add(lost.kind, lost.line, len(self._waiting))
            self._waiting.clear()
