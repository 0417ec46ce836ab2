"""When once-in-a-while work is due, and how the time of a run is counted. Imports no jax."""

import contextlib
import time
from collections.abc import Callable, Iterator


class Clock:
    """Work that is due every so many seconds, and takes at most a share of them.

    The first time is not held against the share, as it often compiles something.

    Args:
        every: seconds between two times.
        share: of all time, how much may be spent.
        now: seconds since some start.
    """

    def __init__(self, every: float, *, share: float = 1.0, now: Callable[[], float]):
        self._every, self._share, self._now = every, share, now
        self._start = self._last = now()
        self._spent = self._cost = 0.0
        self._times = 0

    def due(self) -> bool:
        now = self._now()
        if now - self._last < self._every:
            return False
        return self._spent + self._cost <= self._share * (now - self._start)

    @contextlib.contextmanager
    def spending(self) -> Iterator[None]:
        """Do the work inside; its time counts against the share."""
        begin = time.perf_counter()
        yield
        if self._times:
            self._cost = time.perf_counter() - begin
            self._spent += self._cost
        self._times += 1
        self._last = self._now()


class Stopwatch:
    """The seconds of training, continued over resumes; stands still while paused."""

    def __init__(self, seconds: float = 0.0):
        self._base = seconds
        self._start = time.perf_counter()
        self._paused = 0.0

    def __call__(self) -> float:
        return self._base + time.perf_counter() - self._start - self._paused

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - begin
