"""Bundles on their way through the device: the next is sent before the present one is computed.

Copies start in the order of an itinerary, and a bundle makes room when its last reader is done, so
that at most `depth` bundles are on the device. With a depth of 1 nothing overlaps; with 2 the host
waits for a computation before it sends the next but one bundle; with 3 the device always has its
next computation queued.
"""

import threading
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax

from springroll.stream.ledger import Ledger
from springroll.stream.link import Link, tree_bytes
from springroll.stream.store import Fields, Store


class Stop(NamedTuple):
    """A bundle that is needed on the device."""

    bundle: int
    fields: tuple[str, ...]
    ahead: bool = True  # send the next bundle before this one is computed


class Passing:
    """A bundle on the device.

    Whoever computes with it says with `until` what must be done before it can go.
    """

    def __init__(self, bundle: int, sent: "Future[Any]", ledger: Ledger | None):
        self.bundle = bundle
        self._sent, self._ledger = sent, ledger  # no ledger: it lives on the device
        self._readers: list[Any] = []
        self._lock = threading.Lock()
        self.left = False

    @property
    def arrays(self) -> Fields:
        return self._sent.result()

    def until(self, *readers: Any) -> None:
        """Not before these arrays are computed, or these futures done."""
        self._readers += readers

    def leave(self) -> None:
        """Wait for its readers and free its memory. May be called by any thread, and twice."""
        for reader in self._readers:
            reader.result() if isinstance(reader, Future) else jax.block_until_ready(reader)
        with self._lock:
            if self.left:
                return
            self._readers = []
            if self._ledger is not None:
                for x in jax.tree.leaves(self.arrays):
                    if not x.is_deleted():  # a donated one is gone already
                        x.delete()
                self._ledger.leave(self.bundle)
            self.left = True  # last: who sees it, from any thread, sends the next bundle


class Conveyor:
    """Sends bundles of a store to the device and takes them down again."""

    def __init__(self, store: Store, link: Link, depth: int = 3):
        self.store, self.link = store, link
        self.ledger = Ledger(depth)

    def walk(self, stops: Sequence[Stop]) -> Generator[Passing]:
        """The bundles of the itinerary, one after the other. Consecutive stops at one bundle are
        one passage with the fields of all of them."""
        runs = merged(stops)
        ahead = max(1, self.ledger.depth - 2) if self.ledger.depth > 1 else 0
        there: deque[Passing] = deque()  # oldest first; the last `coming` are still to be used
        coming: deque[Passing] = deque()
        sent = 0
        try:
            for at, (stop, repeats) in enumerate(runs):
                wanted = at + 1 + (ahead if stop.ahead else 0)
                while sent < min(wanted, len(runs)):
                    self._make_room(there, runs[sent][0].bundle)
                    passing = self._begin(runs[sent][0])
                    there.append(passing)
                    coming.append(passing)
                    sent += 1
                now = coming.popleft()
                for _ in range(repeats):
                    yield now
        finally:
            for passing in there:
                passing.leave()

    def hold(self, bundle: int, fields: tuple[str, ...]) -> Passing:
        """A bundle that stays, outside the window, until it is told to leave."""
        return self._begin(Stop(bundle, fields), held=True)

    def _make_room(self, there: deque[Passing], bundle: int) -> None:
        """Take down the oldest until there is room for this one."""
        sent = lambda: [p for p in there if not (p.left or self.store.resident(p.bundle))]
        while len(sent()) >= self.ledger.depth or any(p.bundle == bundle for p in there):
            there.popleft().leave()

    def _begin(self, stop: Stop, held: bool = False) -> Passing:
        arrays = self.store.arrays(stop.bundle, stop.fields)
        if self.store.resident(stop.bundle):
            there: Future[Any] = Future()
            there.set_result(arrays)
            return Passing(stop.bundle, there, None)
        self.ledger.arrive(stop.bundle, tree_bytes(arrays), held)
        return Passing(stop.bundle, self.link.send(arrays), self.ledger)


def merged(stops: Sequence[Stop]) -> list[tuple[Stop, int]]:
    """Consecutive stops at the same bundle as one, and how many they were."""
    runs: list[tuple[Stop, int]] = []
    for stop in stops:
        if runs and runs[-1][0].bundle == stop.bundle:
            last, count = runs[-1]
            fields = tuple(dict.fromkeys((*last.fields, *stop.fields)))
            runs[-1] = (Stop(stop.bundle, fields, last.ahead and stop.ahead), count + 1)
        else:
            runs.append((stop, 1))
    return runs
