"""When once-in-a-while work is due, and how the time of a run is counted. Imports no jax."""

import contextlib
import time
from collections.abc import Callable, Iterator


class Clock:
    """Work that is due every so many seconds, and takes at most a share of them.

    Args:
        now: the seconds it goes by.
        every: seconds between two times.
        share: of all seconds, how much may be spent.
        compiles: the first time compiles something and is not held against the share.
    """

    def __init__(
        self,
        now: Callable[[], float],
        every: float,
        *,
        share: float = 1.0,
        compiles: bool = False,
    ):
        self._now, self._every, self._share = now, every, share
        self._start = self._last = now()
        self._spent = self._cost = 0.0
        self._free = compiles

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
        if not self._free:
            self._cost = time.perf_counter() - begin
            self._spent += self._cost
        self._free = False
        self._last = self._now()


def laps() -> Callable[[], float]:
    """A function that returns the seconds since it was last called, or made."""
    last = time.perf_counter()

    def lap() -> float:
        nonlocal last
        before, last = last, time.perf_counter()
        return last - before

    return lap


class Stopwatch:
    """The seconds of training, continued over resumes; stands still while paused."""

    def __init__(self, seconds: float = 0.0):
        self._before = seconds  # up to the last pause or resume
        self._since: float | None = time.perf_counter()  # None while paused

    def __call__(self) -> float:
        return self._before + (0.0 if self._since is None else time.perf_counter() - self._since)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        self._before, self._since = self(), None
        try:
            yield
        finally:
            self._since = time.perf_counter()
