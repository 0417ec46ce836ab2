"""The way between host and device memory: asynchronous copies, counted in each direction."""

import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
from jax import Array
from jax.sharding import Sharding, SingleDeviceSharding

from springroll.errors import InputError
from springroll.stream.replicas import replicas
from springroll.trees import PyTree, tree_bytes

PINNED = "pinned_host"


class Traffic(NamedTuple):
    """What crossed the link so far; of several devices the links of all."""

    sends: int = 0  # trees sent to the device
    sent: int = 0  # bytes
    fetches: int = 0
    fetched: int = 0


class Link:
    """Copies of trees of arrays. `send` and `fetch` return at once, with a future of the copy.

    On the host, arrays are `pinned_host` ones where the device can page-lock memory, so that it
    copies by itself; else NumPy arrays.

    Several devices compute together (`replicas`): what is sent goes to each of them, and what all
    of them have returns from the first alone.

    Args:
        devices: `jax.Device`s; by default the first of this process.

    Attributes:
        traffic: Copies and bytes in each direction so far.
    """

    def __init__(self, devices: Sequence[Any] = ()):
        self.replicas = replicas(devices)
        self.traffic = Traffic()
        self._back = ThreadPoolExecutor(1, "springroll-fetch")

    def send(self, tree: PyTree, to: PyTree = None) -> Future[PyTree]:
        """To the device.

        Args:
            to: layouts like the tree; by default all of it to every device.
        """
        to = self._everywhere(tree) if to is None else to
        self._count(sends=1, sent=self._sent_bytes(tree, to))
        return self._begin(tree, to)

    def fetch(self, tree: PyTree) -> Future[PyTree]:
        """To the host, once it is computed; the future is done when the bytes are there."""
        size = tree_bytes(tree)
        self._count(fetches=1, fetched=size)
        return self._back.submit(self._fetched, tree, size)

    def to_one(self, what: str) -> "Link":
        """This link, if it goes to one device.

        Raises:
            InputError: it goes to several; `what` names that which passes through one.
        """
        if self.replicas.count > 1:
            raise InputError(
                f"{what} streams through one device; the link goes to {self.replicas.count}"
            )
        return self

    @property
    def on_device(self) -> Sharding:
        return self.replicas.everywhere

    @property
    def on_host(self) -> SingleDeviceSharding | None:
        """Page-locked memory; None if the device has none."""
        device = self.replicas.devices[0]
        kinds = {memory.kind for memory in device.addressable_memories()}
        return SingleDeviceSharding(device, memory_kind=PINNED) if PINNED in kinds else None

    def close(self) -> None:
        self._back.shutdown()

    def _begin(self, tree: PyTree, to: PyTree) -> Future[PyTree]:
        return _done(jax.device_put(tree, to))

    def _fetched(self, tree: PyTree, size: int) -> PyTree:
        if self.on_host is None:
            return jax.device_get(tree)
        tree = jax.tree.map(_one_copy, tree)
        beside = lambda x: x.sharding.with_memory_kind(PINNED) if _on_several(x) else self.on_host
        to = jax.tree.map(beside, tree)
        return jax.block_until_ready(jax.device_put(tree, to))

    def _everywhere(self, tree: PyTree) -> PyTree:
        to = self.on_device
        return jax.tree.map(lambda _: to, tree)

    def _sent_bytes(self, tree: PyTree, to: PyTree) -> int:
        """Over the links of all devices."""
        copies = lambda layout: len(layout.device_set) if layout.is_fully_replicated else 1
        sizes = jax.tree.map(lambda x, layout: x.nbytes * copies(layout), tree, to)
        return sum(jax.tree.leaves(sizes))

    def _count(self, **more: int) -> None:
        counts = {name: getattr(self.traffic, name) + n for name, n in more.items()}
        self.traffic = self.traffic._replace(**counts)


class ThrottledLink(Link):
    """A link of a known bandwidth in each direction: threads that sleep as long as a copy takes.

    For tests and benches on machines whose device is the host.
    """

    def __init__(self, bytes_per_second: float, devices: Sequence[Any] = ()):
        super().__init__(devices)
        self.bytes_per_second = bytes_per_second
        self.busy = {"send": 0.0, "fetch": 0.0}  # seconds each direction was in use
        self._out = ThreadPoolExecutor(1, "springroll-send")

    def close(self) -> None:
        self._out.shutdown()
        super().close()

    def _begin(self, tree: PyTree, to: PyTree) -> Future[PyTree]:
        copy = functools.partial(self._sent, tree, to)
        return self._out.submit(self._paced, "send", tree_bytes(tree), copy)

    def _sent(self, tree: PyTree, to: PyTree) -> PyTree:
        return jax.block_until_ready(jax.device_put(tree, to))

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


def _on_several(x: PyTree) -> bool:
    """Whether it is an array on several devices."""
    return isinstance(x, Array) and len(x.sharding.device_set) > 1


def _one_copy(x: PyTree) -> PyTree:
    """Of what every device has, that of the first."""
    return x.addressable_data(0) if _on_several(x) and x.is_fully_replicated else x


def _done(value: PyTree) -> Future[PyTree]:
    future: Future[PyTree] = Future()
    future.set_result(value)
    return future
