"""What becomes of a bundle's gradient: the one interface of all ways to update weights."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
from jax import Array

from springroll.stream.conveyor import Conveyor, Passing
from springroll.stream.store import HostStore
from springroll.trees import PyTree, is_none

Held: TypeAlias = dict[int, Future[tuple[PyTree, PyTree]]]
"""Gradients on the host that wait for a common factor: bundle -> future of (values, statistics)."""


class Gradient(NamedTuple):
    """Of one bundle, on the device.

    values: like the bundle's weights, a mean over the step's tokens, before clipping.
    factor: () float32, to multiply them with. good: () bool, whether all gradients were finite so
    far; else the bundle must not change.
    stats: of the layer, averaged; None for the bundle of the rest.
    """

    values: PyTree
    factor: Array
    good: Array
    stats: PyTree = None


@runtime_checkable
class Update(Protocol):
    """Writes new weights and optimizer states to the store of a conveyor."""

    @property
    def fields(self) -> tuple[str, ...]:
        """What must be on the device, beside the weights, when a gradient is applied."""
        ...

    @property
    def on_host(self) -> bool:
        """Whether gradients of bundles that pass go to the host, in the types of the weights."""
        ...

    def init(self, weights: PyTree, layer: bool) -> PyTree:
        """The state of a bundle, from its float32 weights."""
        ...

    def apply(self, conveyor: Conveyor[HostStore], passing: Passing, gradient: Gradient) -> None:
        """Take this gradient. Returns at once; the store promises the result."""
        ...

    def apply_all(self, conveyor: Conveyor[HostStore], held: Held, gradient: Gradient) -> None:
        """The same for gradients that waited on the host for a common factor.

        `gradient` has the factor and `good` only.
        """
        ...


class PlacedUpdate:
    """Two ways to update weights in one model.

    Args:
        resident: For bundles that live on the device.
        passing: For those that pass through it; it also makes the states of all bundles.
    """

    def __init__(self, resident: Update, passing: Update):
        self._resident, self._passing = resident, passing

    @property
    def fields(self) -> tuple[str, ...]:
        return self._passing.fields

    @property
    def on_host(self) -> bool:
        return self._passing.on_host

    @property
    def clip_norm(self) -> float | None:
        """The global norm that the optimizer clips by."""
        return getattr(self._passing, "clip_norm", None)

    def init(self, weights: PyTree, layer: bool) -> PyTree:
        return self._passing.init(weights, layer)

    def apply(self, conveyor: Conveyor[HostStore], passing: Passing, gradient: Gradient) -> None:
        update = self._resident if conveyor.store.resident(passing.bundle) else self._passing
        update.apply(conveyor, passing, gradient)

    def apply_all(self, conveyor: Conveyor[HostStore], held: Held, gradient: Gradient) -> None:
        stays = {
            bundle: held.pop(bundle) for bundle in list(held) if conveyor.store.resident(bundle)
        }
        self._passing.apply_all(conveyor, held, gradient)
        self._resident.apply_all(conveyor, stays, gradient)


def merged(a: PyTree, b: PyTree) -> PyTree:
    """Trees that have None where the other has an array, as one."""
    return jax.tree.map(lambda x, y: y if x is None else x, a, b, is_leaf=is_none)


def or_fail(
    call: Callable[[Future[Any]], None], written: Future[Any]
) -> Callable[[Future[Any]], None]:
    """The call, whose failure comes out where the bundle is waited for."""

    def guarded(done: Future[Any]) -> None:
        try:
            call(done)
        except BaseException as error:
            written.set_exception(error)

    return guarded
