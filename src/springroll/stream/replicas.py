"""The devices that compute a streamed step together: data parallel.

Every device has the weights that pass and its share of the rows of a batch. What a program says of
a whole batch stays true: its compiler divides the work by how rows are laid out, and sums gradients
over the devices before they leave. On one device nothing is laid out, and programs are as they
were.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from springroll.trees import PyTree

AXIS = "batch"
DEVICE = "device"


@dataclass(frozen=True)
class Replicas:
    """Layouts over these devices."""

    devices: tuple[Any, ...]

    @property
    def count(self) -> int:
        """How many devices there are."""
        return len(self.devices)

    @functools.cached_property
    def everywhere(self) -> Sharding:
        """All of an array in the memory of every device."""
        if self.count == 1:
            return SingleDeviceSharding(self.devices[0], memory_kind=DEVICE)
        return self._over(PartitionSpec())

    def rows(self, tree: PyTree) -> PyTree:
        """Layouts like a tree: first axes split over the devices, or what they do not divide
        everywhere."""
        if self.count == 1:
            return jax.tree.map(lambda _: self.everywhere, tree)
        split, whole = self._over(PartitionSpec(AXIS)), self.everywhere
        divides = lambda x: x.ndim > 0 and x.shape[0] > 0 and x.shape[0] % self.count == 0
        return jax.tree.map(lambda x: split if divides(x) else whole, tree)

    def split(self, tree: PyTree) -> PyTree:
        """In a program: arrays that are laid out by rows."""
        if self.count == 1:
            return tree
        hold = lambda x, layout: x if _no_numbers(x) else lax.with_sharding_constraint(x, layout)
        return jax.tree.map(hold, tree, self.rows(tree))

    def summed(self, tree: PyTree) -> PyTree:
        """In a program: arrays that are the same on every device. A gradient is summed for it."""
        return tree if self.count == 1 else lax.with_sharding_constraint(tree, self.everywhere)

    def compiled(
        self, fn: Callable[..., Any], jit: Callable[..., Any] = jax.jit, **options: Any
    ) -> Any:
        """`jit(fn)`. Programs of several CPU devices in flight together can wait for each other
        for ever, so that there each is waited for."""
        jitted = jit(fn, **options)
        if self.count == 1 or self.devices[0].platform != "cpu":
            return jitted
        return lambda *given: jax.block_until_ready(jitted(*given))

    def _over(self, spec: PartitionSpec) -> NamedSharding:
        return NamedSharding(Mesh(np.array(self.devices), (AXIS,)), spec, memory_kind=DEVICE)


def replicas(devices: Sequence[Any] = ()) -> Replicas:
    """Of these devices; by default the first of this process alone."""
    return Replicas(tuple(devices) or (jax.local_devices()[0],))


def _no_numbers(x: Any) -> bool:
    """Whether it is a cotangent of integers."""
    return x.dtype == jax.dtypes.float0


ALONE = Replicas((None,))
"""One device, whichever: for programs that are only compiled."""
