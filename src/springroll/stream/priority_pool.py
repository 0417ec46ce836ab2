"""Threads that work on the bundle needed first.

After the backward pass every bundle waits for its update, and the next forward pass needs them in
the order 0, 1, 2, ... while the backward pass handed them in as L-1, ..., 1, 0. First in, first out
would let the forward pass wait for all of them; a queue ordered by index lets it follow the updates
closely.
"""

import heapq
import itertools
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Self

from springroll.errors import InputError


@dataclass
class _Submission:
    """The jobs of one bundle: how many are left, and whom to tell."""

    left: int
    done: Future[None] = field(default_factory=Future)


class PriorityPool:
    """A pool of daemon threads; a free thread takes the oldest job of the smallest index.

        with PriorityPool(threads=2) as pool:
            pool.submit(1, jobs)         # jobs: calls without arguments, in any order
            pool.submit(0, more_jobs)
            pool.wait(0)                 # bundle 0 may be used now
            pool.drain()                 # all may

    The first exception of a job ends the work: jobs that have not begun are dropped, and that
    exception comes out of every `wait`, `drain` and `submit` from then on, for memory may be half
    written. A bundle counts as done, or failed, only when none of its jobs runs any more.

    Leaving the `with` block drains the pool, or drops what waits if the block raised.
    """

    def __init__(self, threads: int) -> None:
        if threads < 1:
            raise InputError(f"a pool of {threads} threads; expected at least 1")
        self._changed = threading.Condition()
        self._jobs: list[tuple[int, int, Callable[[], object], _Submission]] = []  # a heap
        self._order = itertools.count()
        self._unfinished: dict[int, list[Future[None]]] = {}
        self._failure: BaseException | None = None
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"next-use-{i}", daemon=True)
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, index: int, jobs: Iterable[Callable[[], object]]) -> Future[None]:
        """Queue the jobs of a bundle; the future is done when all of them are."""
        jobs = list(jobs)
        submission = _Submission(len(jobs))
        with self._changed:
            self._check()
            if self._closed:
                raise RuntimeError("the pool is closed")
            for job in jobs:
                heapq.heappush(self._jobs, (index, next(self._order), job, submission))
            if jobs:
                self._unfinished.setdefault(index, []).append(submission.done)
            self._changed.notify_all()
        if not jobs:
            submission.done.set_result(None)
        return submission.done

    def wait(self, index: int) -> None:
        """Return when nothing that was submitted for this bundle is left to do."""
        with self._changed:
            waiting = tuple(self._unfinished.get(index, ()))
        for done in waiting:
            done.result()
        with self._changed:
            self._check()

    def drain(self) -> None:
        """Return when nothing at all is left to do."""
        with self._changed:
            waiting = tuple(itertools.chain.from_iterable(self._unfinished.values()))
        for done in waiting:
            done.exception()  # the first failure is raised below, once nothing runs any more
        with self._changed:
            self._check()

    def close(self) -> None:
        """Drop what has not begun, let what runs end, and end the threads. Twice is once."""
        with self._changed:
            self._closed = True
            if self._jobs and self._failure is None:
                self._failure = RuntimeError("the pool was closed before this update was made")
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.drain()
        finally:
            self.close()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                if not self._jobs:
                    return
                index, _, job, submission = heapq.heappop(self._jobs)
                run = self._failure is None
            try:
                if run:
                    job()
            except BaseException as error:  # whatever it is, it belongs to the one who waits
                with self._changed:
                    self._failure = self._failure or error
            del job  # a job holds views of the memory of a bundle
            self._ended(index, submission)
            del submission  # who waited for it may hold a bundle's gradient

    def _ended(self, index: int, submission: _Submission) -> None:
        with self._changed:
            submission.left -= 1
            if submission.left:
                return
            self._unfinished[index].remove(submission.done)
            if not self._unfinished[index]:
                del self._unfinished[index]
            failure = self._failure
        if failure is None:
            submission.done.set_result(None)
        else:
            submission.done.set_exception(failure)
