"""The way between host and device memory: asynchronous copies, counted in each direction."""

import functools
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
from jax.sharding import SingleDeviceSharding

from springroll.trees import PyTree, tree_bytes

PINNED = "pinned_host"
DEVICE = "device"


class Traffic(NamedTuple):
    """What crossed the link so far."""

    sends: int = 0  # trees sent to the device
    sent: int = 0  # bytes
    fetches: int = 0
    fetched: int = 0


class Link:
    """Copies of trees of arrays. `send` and `fetch` return at once, with a future of the copy.

    On the host, arrays are `pinned_host` ones where the device can page-lock memory, so that it
    copies by itself; else NumPy arrays.

    Args:
        device: A `jax.Device`; by default the first of this process.

    Attributes:
        traffic: Copies and bytes in each direction so far.
    """

    def __init__(self, device: Any = None):
        self.device = device or jax.local_devices()[0]
        self.traffic = Traffic()
        self._back = ThreadPoolExecutor(1, "springroll-fetch")

    def send(self, tree: PyTree) -> Future[PyTree]:
        """To the device."""
        self._count(sends=1, sent=tree_bytes(tree))
        return _done(jax.device_put(tree, self.on_device))

    def fetch(self, tree: PyTree) -> Future[PyTree]:
        """To the host, once it is computed; the future is done when the bytes are there."""
        size = tree_bytes(tree)
        self._count(fetches=1, fetched=size)
        return self._back.submit(self._fetched, tree, size)

    @property
    def on_device(self) -> SingleDeviceSharding:
        return SingleDeviceSharding(self.device, memory_kind=DEVICE)

    @property
    def on_host(self) -> SingleDeviceSharding | None:
        """Page-locked memory; None if the device has none."""
        kinds = {memory.kind for memory in self.device.addressable_memories()}
        return SingleDeviceSharding(self.device, memory_kind=PINNED) if PINNED in kinds else None

    def close(self) -> None:
        self._back.shutdown()

    def _fetched(self, tree: PyTree, size: int) -> PyTree:
        if self.on_host is None:
            return jax.device_get(tree)
        return jax.block_until_ready(jax.device_put(tree, self.on_host))

    def _count(self, **more: int) -> None:
        counts = {name: getattr(self.traffic, name) + n for name, n in more.items()}
        self.traffic = self.traffic._replace(**counts)


class ThrottledLink(Link):
    """A link of a known bandwidth in each direction: threads that sleep as long as a copy takes.

    For tests and benches on machines whose device is the host.
    """

    def __init__(self, bytes_per_second: float, device: Any = None):
        super().__init__(device)
        self.bytes_per_second = bytes_per_second
        self.busy = {"send": 0.0, "fetch": 0.0}  # seconds each direction was in use
        self._out = ThreadPoolExecutor(1, "springroll-send")

    def send(self, tree: PyTree) -> Future[PyTree]:
        size = tree_bytes(tree)
        self._count(sends=1, sent=size)
        return self._out.submit(self._paced, "send", size, functools.partial(self._sent, tree))

    def close(self) -> None:
        self._out.shutdown()
        super().close()

    def _sent(self, tree: PyTree) -> PyTree:
        return jax.block_until_ready(jax.device_put(tree, self.on_device))

    def _fetched(self, tree: PyTree, size: int) -> PyTree:
        jax.block_until_ready(tree)
        return self._paced("fetch", size, functools.partial(super()._fetched, tree, size))

    def _paced(self, way: str, size: int, copy: Callable[[], PyTree]) -> PyTree:
        """The copy, and sleep until as much time has passed as the link would take."""
        began, seconds = time.perf_counter(), size / self.bytes_per_second
        result = copy()
        time.sleep(max(0.0, began + seconds - time.perf_counter()))
        self.busy[way] += seconds
        return result


def _done(value: PyTree) -> Future[PyTree]:
    future: Future[PyTree] = Future()
    future.set_result(value)
    return future
