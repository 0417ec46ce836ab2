"""Bundles on their way through the device: the next is sent before the present one is computed.

Copies start in the order of an itinerary, and a bundle makes room when its last reader is done, so
that at most `depth` bundles are on the device. With a depth of 1 nothing overlaps; with 2 the host
waits for a computation before it sends the next but one bundle; with 3 the device always has its
next computation queued.

Two rules hold. At most `depth` bundles are on the device at a time, and the host memory of a bundle
is not written while a copy of it, which may still be under way or be the very memory, lives on the
device. Breaking a rule is a bug of ours, not of the user: it raises at once instead of training on
torn weights.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from typing import Generic, NamedTuple, TypeVar

import jax

from springroll.errors import InputError
from springroll.stream.link import Link
from springroll.stream.store import Fields, Store
from springroll.trees import PyTree, tree_bytes

S = TypeVar("S", bound=Store)
READ_AHEAD = 2  # bundles that a store on a disk is told of before they are sent


class BrokenRule(AssertionError):
    """A bundle too many on the device, or one written while it was in use."""


class Ledger:
    """Counts bundles in and out; safe to use from several threads.

    Attributes:
        depth: bundles that may be on the device together.
        peak: the most that were; peak_bytes: of all bundles there together, held ones included.
    """

    def __init__(self, depth: int):
        self.depth = depth
        self.peak = self.peak_bytes = 0
        self._present: dict[int, int] = {}  # bundle -> bytes
        self._held: set[int] = set()
        self._lock = threading.Lock()

    def arrive(self, bundle: int, size: int, held: bool = False) -> None:
        """A copy of `size` bytes is on its way to the device; a `held` one is no part of the
        window."""
        with self._lock:
            if bundle in self._present:
                raise BrokenRule(f"bundle {bundle} is sent to the device twice")
            self._present[bundle] = size
            if held:
                self._held.add(bundle)
            window = len(self._present) - len(self._held)
            if window > self.depth:
                raise BrokenRule(f"{window} bundles are on the device; the limit is {self.depth}")
            self.peak = max(self.peak, window)
            self.peak_bytes = max(self.peak_bytes, sum(self._present.values()))

    def leave(self, bundle: int) -> None:
        """Nobody reads that copy any more."""
        with self._lock:
            del self._present[bundle]
            self._held.discard(bundle)

    def writing(self, bundle: int) -> None:
        """Host memory of this bundle is about to be written."""
        with self._lock:
            if bundle in self._present:
                raise BrokenRule(f"bundle {bundle} is written while it is on the device")


class Stop(NamedTuple):
    """A bundle that is needed on the device."""

    bundle: int
    fields: tuple[str, ...]
    ahead: bool = True  # send the next bundle before this one is computed
    after: tuple[str, ...] = ()  # what the host will use of it then


class Passing:
    """A bundle on the device.

    Whoever computes with it says with `until` what must be done before it can go.
    """

    def __init__(self, bundle: int, sent: Future[Fields], ledger: Ledger | None):
        self.bundle = bundle
        self._sent, self._ledger = sent, ledger  # no ledger: it lives on the device
        self._readers: list[PyTree] = []
        self._lock = threading.Lock()
        self.left = False

    @property
    def arrays(self) -> Fields:
        return self._sent.result()

    def until(self, *readers: PyTree) -> None:
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


class Conveyor(Generic[S]):
    """Sends bundles of a store to the device and takes them down again."""

    def __init__(self, store: S, link: Link, depth: int = 3):
        if depth < 1:
            raise InputError(f"depth is {depth}; expected at least 1 bundle on the device")
        self.store, self.link = store, link
        self.ledger = Ledger(depth)

    def walk(self, stops: Sequence[Stop]) -> Generator[Passing]:
        """The bundles of the itinerary, one after the other. Consecutive stops at one bundle are
        one passage with the fields of all of them."""
        runs = merged(stops)
        ahead = max(1, self.ledger.depth - 2) if self.ledger.depth > 1 else 0
        on_device: deque[Passing] = deque()  # oldest first; the last `coming` are still to be used
        coming: deque[Passing] = deque()
        sent = 0
        try:
            for at, (stop, repeats) in enumerate(runs):
                wanted = at + 1 + (ahead if stop.ahead else 0)
                while sent < min(wanted, len(runs)):
                    self._make_room(on_device, runs[sent][0].bundle)
                    self._announce(runs[sent : sent + 1 + READ_AHEAD])
                    passing = self._begin(runs[sent][0])
                    on_device.append(passing)
                    coming.append(passing)
                    sent += 1
                now = coming.popleft()
                for _ in range(repeats):
                    yield now
        finally:
            for passing in on_device:
                passing.leave()

    def hold(
        self,
        bundle: int,
        fields: tuple[str, ...],
        chosen: Callable[[Fields], Fields] = lambda fields: fields,
    ) -> Passing:
        """A bundle that stays, outside the window, until it is told to leave; of one that is sent
        only what is `chosen`."""
        return self._begin(Stop(bundle, fields), held=True, chosen=chosen)

    def _announce(self, runs: Sequence[tuple[Stop, int]]) -> None:
        """Tell the store what will be sent, and what the host will use then."""
        for stop, _ in runs:
            self.store.soon(stop.bundle, (*stop.fields, *stop.after))

    def _make_room(self, on_device: deque[Passing], bundle: int) -> None:
        """Take down the oldest until there is room for this one."""
        sent = lambda: [p for p in on_device if not (p.left or self.store.resident(p.bundle))]
        while len(sent()) >= self.ledger.depth or any(p.bundle == bundle for p in on_device):
            on_device.popleft().leave()

    def _begin(
        self,
        stop: Stop,
        held: bool = False,
        chosen: Callable[[Fields], Fields] = lambda fields: fields,
    ) -> Passing:
        arrays = self.store.arrays(stop.bundle, stop.fields)
        if self.store.resident(stop.bundle):
            own: Future[Fields] = Future()
            own.set_result(arrays)
            return Passing(stop.bundle, own, None)
        arrays = chosen(arrays)
        self.ledger.arrive(stop.bundle, tree_bytes(arrays), held)
        return Passing(stop.bundle, self.link.send(arrays), self.ledger)


def merged(stops: Sequence[Stop]) -> list[tuple[Stop, int]]:
    """Consecutive stops at the same bundle as one, and how many they were."""
    runs: list[tuple[Stop, int]] = []
    for stop in stops:
        if runs and runs[-1][0].bundle == stop.bundle:
            last, count = runs[-1]
            fields = tuple(dict.fromkeys((*last.fields, *stop.fields)))
            after = tuple(dict.fromkeys((*last.after, *stop.after)))
            runs[-1] = (Stop(stop.bundle, fields, last.ahead and stop.ahead, after), count + 1)
        else:
            runs.append((stop, 1))
    return runs
