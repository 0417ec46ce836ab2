"""What of a store is on the device, and the two rules that streaming must keep.

At most `depth` bundles are there at a time, and no bundle's host memory is written while a copy of
it, which may still be under way or be the very memory, lives on the device. Breaking a rule is a
bug of ours, not of the user: it raises at once instead of training on torn weights.
"""

import threading


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
        self._there: dict[int, int] = {}  # bundle -> bytes
        self._held: set[int] = set()
        self._lock = threading.Lock()

    def arrive(self, bundle: int, size: int, held: bool = False) -> None:
        """A copy of `size` bytes is on its way to the device; a `held` one is no part of the
        window."""
        with self._lock:
            if bundle in self._there:
                raise BrokenRule(f"bundle {bundle} is sent to the device twice")
            self._there[bundle] = size
            if held:
                self._held.add(bundle)
            window = len(self._there) - len(self._held)
            if window > self.depth:
                raise BrokenRule(f"{window} bundles are on the device; the limit is {self.depth}")
            self.peak = max(self.peak, window)
            self.peak_bytes = max(self.peak_bytes, sum(self._there.values()))

    def leave(self, bundle: int) -> None:
        """Nobody reads that copy any more."""
        with self._lock:
            del self._there[bundle]
            self._held.discard(bundle)

    def writing(self, bundle: int) -> None:
        """Host memory of this bundle is about to be written."""
        with self._lock:
            if bundle in self._there:
                raise BrokenRule(f"bundle {bundle} is written while it is on the device")
