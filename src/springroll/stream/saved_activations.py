"""Activations that wait for a later program: on the device while they fit, else on the host."""

from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Protocol, runtime_checkable

import jax

from springroll.stream.link import Link
from springroll.trees import PyTree


class Activations:
    """Trees of arrays by key, each on the device or on the host."""

    def __init__(self, link: Link):
        self._link = link
        self._on_device: dict[Hashable, PyTree | Future[PyTree]] = {}
        self._on_host: dict[Hashable, tuple[Future[PyTree], PyTree]] = {}  # and its layouts

    def __contains__(self, key: Hashable) -> bool:
        return key in self._on_device or key in self._on_host

    def put(self, key: Hashable, x: PyTree, on_device: bool) -> None:
        """Keep `x`; a copy to the host begins at once."""
        if on_device:
            self._on_device[key] = x
        else:
            layouts = jax.tree.map(lambda leaf: leaf.sharding, x)
            self._on_host[key] = self._link.fetch(x), layouts

    def prefetch(self, key: Hashable) -> None:
        """Begin to send back what is on the host under this key, if anything is."""
        if key in self._on_host:
            came, layouts = self._on_host.pop(key)
            self._on_device[key] = self._link.send(came.result(), layouts)

    def get(self, key: Hashable) -> PyTree:
        """The arrays, on the device."""
        self.prefetch(key)
        x = self._on_device[key]
        if isinstance(x, Future):
            x = self._on_device[key] = x.result()
        return x

    def pop(self, key: Hashable) -> PyTree:
        """The same, and they are no longer kept."""
        x = self.get(key)
        del self._on_device[key]
        return x


@runtime_checkable
class Saving(Protocol):
    """A model that says what of an input the gradient of a bundle depends on, and which bundles
    share that; such as `models.expert_stages`."""

    def source(self, bundle: int) -> int:
        """The first bundle that the same is kept for: itself, or one before."""
        ...

    def kept(self, bundle: int, x: PyTree) -> PyTree:
        """What is kept."""
        ...

    def restored(self, bundle: int, kept: PyTree) -> PyTree:
        """An input with the same gradient as that which was kept."""
        ...


class SaveAll:
    """The `Saving` of all other models: every bundle's whole input is kept."""

    def source(self, bundle: int) -> int:
        return bundle

    def kept(self, bundle: int, x: PyTree) -> PyTree:
        return x

    def restored(self, bundle: int, kept: PyTree) -> PyTree:
        return kept


class SavedInputs:
    """The inputs of layers for the backward pass, by (layer, micro-batch); a layer is any bundle.

    Args:
        micro_batches: How many there are.
        stays: Whether a layer's inputs stay on the device. The last layers' should: they are
            needed first, while others are on their way back.
        saving: What of an input is kept.
    """

    def __init__(
        self,
        link: Link,
        micro_batches: int,
        stays: Callable[[int], bool],
        saving: Saving,
    ):
        self._inputs = Activations(link)
        self._micro_batches, self._stays, self._saving = micro_batches, stays, saving

    def keep(self, layer: int, part: int, x: PyTree) -> None:
        """Save the input of a layer, unless it shares that of a layer before."""
        if self._saving.source(layer) == layer:
            self._inputs.put((layer, part), self._saving.kept(layer, x), self._stays(layer))

    def has(self, layer: int, part: int) -> bool:
        return (layer, part) in self._inputs

    def prefetch(self, layer: int) -> None:
        """Begin to send back what is on the host of this layer."""
        source = self._saving.source(layer)
        for part in range(self._micro_batches):
            self._inputs.prefetch((source, part))

    def get(self, layer: int, part: int) -> PyTree:
        """The input, on the device."""
        self.prefetch(layer)
        source = self._saving.source(layer)
        return self._saving.restored(layer, self._inputs.get((source, part)))

    def pop(self, layer: int, part: int) -> PyTree:
        """The same for the last time."""
        x = self.get(layer, part)
        if self._saving.source(layer) == layer:  # the last of those that share it, going back
            self._inputs.pop((layer, part))
        return x
