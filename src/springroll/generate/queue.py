"""Which row of the device writes for whom: rows that wait, and groups of slots that hold them.

A job is one row to be written: a member and a prompt. Jobs of a pair need a group that holds its
factors; jobs of nobody (pair -1, the unperturbed weights) run in any slot.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

SMALLEST = 8  # rows of a bucket: fewer cost about as much per step, and a compilation
ANY = -1  # the pair of jobs that need no factors, and of groups that hold none


@dataclass(frozen=True)
class Jobs:
    """Every row of a run, in the order they are started in; all arrays (J,)."""

    member: np.ndarray  # int32
    prompt: np.ndarray  # int32
    pair: np.ndarray  # int32, or ANY
    sign: np.ndarray  # float32

    @classmethod
    def of(cls, pairs: int, signs: tuple[int, ...], unperturbed: int, prompts: int) -> Jobs:
        """Members pair by pair, each with all prompts, and then the unperturbed ones."""
        members = pairs * len(signs)
        pair = np.r_[np.repeat(np.arange(pairs), len(signs)), np.full(unperturbed, ANY)]
        sign = np.r_[np.tile(np.asarray(signs), pairs), np.zeros(unperturbed)]
        # The members of a pair answer a prompt side by side: their texts are about as long.
        order = np.r_[
            np.arange(members * prompts)
            .reshape(pairs, len(signs), prompts)
            .swapaxes(1, 2)
            .reshape(-1),
            # Copies of a prompt stand side by side: they are read once.
            np.arange(members * prompts, (members + unperturbed) * prompts)
            .reshape(unperturbed, prompts)
            .T.reshape(-1),
        ]
        member, prompt = np.divmod(order, prompts)
        as_int = lambda x: x.astype(np.int32)
        return cls(
            as_int(member), as_int(prompt), as_int(pair[member]), sign[member].astype(np.float32)
        )


class Waiting:
    """Jobs that have not begun."""

    def __init__(self, jobs: Jobs):
        self._by_pair: dict[int, deque[int]] = {}
        for job, pair in enumerate(jobs.pair.tolist()):
            self._by_pair.setdefault(pair, deque()).append(job)

    def __bool__(self) -> bool:
        return any(self._by_pair.values())

    def has(self, pair: int) -> bool:
        """Whether jobs of that pair, not of nobody, are left."""
        return pair != ANY and bool(self._by_pair.get(pair))

    def pop(self, pair: int) -> int | None:
        """The next job that a group of `pair` can run."""
        for key in (pair, ANY):
            if self._by_pair.get(key):
                return self._by_pair[key].popleft()
        return None

    def longest(self) -> int:
        """The pair with most jobs, the first of equals."""
        counts = [(len(jobs), -pair) for pair, jobs in self._by_pair.items() if pair != ANY]
        most, pair = max(counts, default=(0, 0))
        return -pair if most else ANY


@dataclass
class Slots:
    """Rows in G groups of g: the pair each group holds (G,), the job of each slot (G, g) or -1."""

    pair: np.ndarray
    job: np.ndarray

    @classmethod
    def empty(cls, groups: int, height: int) -> Slots:
        return cls(np.full(groups, ANY, np.int32), np.full((groups, height), -1, np.int32))

    def fill(self, waiting: Waiting) -> list[int]:
        """Give idle slots their next jobs: the slots (numbers of rows) that have a new one.

        A group keeps its pair as long as that pair has jobs or the group a row.
        """
        new: list[int] = []
        for group, jobs in enumerate(self.job):
            if (jobs < 0).all() and not waiting.has(int(self.pair[group])):
                self.pair[group] = waiting.longest()
            for place in np.flatnonzero(jobs < 0).tolist():
                job = waiting.pop(int(self.pair[group]))
                if job is None:
                    break
                jobs[place] = job
                new.append(group * jobs.size + place)
        return new

    def packed(self, height: int, job_pair: np.ndarray) -> tuple[Slots, np.ndarray]:
        """The live rows in as few groups of `height` as they need, rounded up to a power of two.

        Returns the new slots and the old row of each new one, -1 where it has none.
        """
        live = np.flatnonzero(self.job.reshape(-1) >= 0)
        by_pair: dict[int, list[int]] = {}
        for row in live.tolist():
            by_pair.setdefault(int(job_pair[self.job.reshape(-1)[row]]), []).append(row)
        free = by_pair.pop(ANY, [])
        groups: list[tuple[int, list[int]]] = []
        for pair, rows in by_pair.items():
            groups += [(pair, rows[i : i + height]) for i in range(0, len(rows), height)]
        for _, rows in groups:
            while free and len(rows) < height:
                rows.append(free.pop())
        groups += [(ANY, free[i : i + height]) for i in range(0, len(free), height)]
        count = 1 << (max(len(groups), -(-SMALLEST // height)) - 1).bit_length()
        slots = Slots.empty(count, height)
        source = np.full((count, height), -1, np.int32)
        for group, (pair, rows) in enumerate(groups):
            slots.pair[group] = pair
            source[group, : len(rows)] = rows
        holds = source >= 0
        slots.job[holds] = self.job.reshape(-1)[source[holds]]
        return slots, source.reshape(-1)
