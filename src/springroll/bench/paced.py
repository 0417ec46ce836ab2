"""A model, a link and an optimizer that take a set time, and a log of which resource was busy when.

They sleep instead of burning cores, so that a machine of two cores can show whether a schedule
overlaps computation, copies in both directions and updates: everything that decides what waits for
what is the real thing.
"""

import functools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from springroll.stream.host_adamw import AdamW
from springroll.stream.link import ThrottledLink
from springroll.trees import PyTree

WIDTH = 8  # of the activations


class Event(NamedTuple):
    """A resource at work: seconds of `time.perf_counter`."""

    resource: str  # compute, send, fetch or update
    start: float
    stop: float


class Log:
    """Events in the order in which they ended; any thread may add one."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._lock = threading.Lock()

    def add(self, resource: str, start: float) -> None:
        """From `start` until now."""
        with self._lock:
            self._events.append(Event(resource, start, time.perf_counter()))

    def between(self, start: float, stop: float) -> list[Event]:
        """What was under way in that time, cut to it."""
        with self._lock:
            events = [e for e in self._events if e.start < stop and e.stop > start]
        return [Event(e.resource, max(e.start, start), min(e.stop, stop)) for e in events]


@dataclass(frozen=True)
class PacedModel:
    """Three parts whose block takes `seconds` forward, and three times that back: it is computed
    again, and its gradient costs twice as much. The head takes as long as a block."""

    seconds: float
    log: Log = field(default_factory=Log)

    @property
    def stack(self) -> str:
        return "layers"

    def embed(self, params: PyTree, tokens: Array) -> Array:
        return params["embed"][:WIDTH] + jnp.mean(tokens.astype(jnp.float32))

    def block(self, layer: PyTree, x: Array, index: Array) -> tuple[Array, PyTree]:
        return self._slow(jnp.tanh(x * layer["w"][:WIDTH])), {}

    def finish(
        self, params: PyTree, x: Array, stats: PyTree, tokens: Array
    ) -> tuple[Array, PyTree]:
        return jnp.mean(jnp.square(self._slow(x) - 1)), {}

    @property
    def _slow(self) -> Callable[[Array], Array]:
        forward = functools.partial(self._after, self.seconds)
        slow = jax.custom_vjp(forward)
        # What JAX computes again of the forward is this identity only, which nothing needs, so the
        # compiler drops it: the way back takes all three.
        slow.defvjp(lambda x: (forward(x), None), lambda _, g: (self._after(3 * self.seconds, g),))
        return slow

    def _after(self, seconds: float, x: Array) -> Array:
        """x, `seconds` after it is there."""

        def sleep(_: Array) -> np.float32:
            start = time.perf_counter()
            time.sleep(seconds)
            self.log.add("compute", start)
            return np.float32(0)

        return x + jax.pure_callback(sleep, jax.ShapeDtypeStruct((), jnp.float32), x.ravel()[0])


def shapes(layers: int, numbers: int) -> PyTree:
    """Parameters of a `PacedModel`: `numbers` per layer, and as many in the embedding."""
    return {
        "embed": jax.ShapeDtypeStruct((numbers,), jnp.float32),
        "layers": {"w": jax.ShapeDtypeStruct((layers, numbers), jnp.float32)},
    }


class PacedLink(ThrottledLink):
    """A `ThrottledLink` that logs its copies."""

    def __init__(self, bytes_per_second: float, log: Log):
        super().__init__(bytes_per_second)
        self._log = log

    def _paced(self, way: str, size: int, copy: Callable[[], PyTree]) -> PyTree:
        start = time.perf_counter()
        result = super()._paced(way, size, copy)
        self._log.add(way, start)
        return result


@dataclass(frozen=True)
class PacedAdamW(AdamW):
    """AdamW, each of whose calls takes as long as at `numbers_per_second`."""

    numbers_per_second: float = float("inf")
    log: Log = field(default_factory=Log)

    def jobs(
        self, weights: PyTree, state: PyTree, grads: PyTree, **options: PyTree
    ) -> Iterator[Callable[[], None]]:
        calls = list(super().jobs(weights, state, grads, **options))
        numbers = sum(w.size for w in jax.tree.leaves(weights))
        seconds = numbers / self.numbers_per_second / len(calls)
        return (functools.partial(self._slow, call, seconds) for call in calls)

    def _slow(self, call: Callable[[], None], seconds: float) -> None:
        start = time.perf_counter()
        call()
        time.sleep(max(0.0, start + seconds - time.perf_counter()))
        self.log.add("update", start)
