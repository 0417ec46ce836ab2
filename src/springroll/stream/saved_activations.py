"""The inputs of layers, kept for the backward pass: on the device or on the host.

What waits between two layers: on the device while it fits, else in host memory.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol, runtime_checkable

from springroll.stream.link import Link


class Parked:
    """Activations by number; those on the host are sent back one ahead of their turn."""

    def __init__(self, link: Link, stays: bool):
        self._link, self._stays = link, stays
        self._here: dict[int, Any] = {}
        self._away: dict[int, Future[Any]] = {}

    def keep(self, number: int, x: Any) -> None:
        if self._stays:
            self._here[number] = x
        else:
            self._away[number] = self._link.fetch(x)

    def take(self, number: int) -> Any:
        """On the device, and no longer here."""
        for wanted in (number, number + 1):
            if wanted in self._away:
                self._here[wanted] = self._link.send(self._away.pop(wanted).result())
        x = self._here.pop(number)
        return x.result() if isinstance(x, Future) else x


@runtime_checkable
class Saving(Protocol):
    """A model that says what of an input the gradient of a bundle depends on, and which bundles
    share that; such as `models.expert_stages`."""

    def source(self, bundle: int) -> int:
        """The first bundle that the same is kept for: itself, or one before."""
        ...

    def kept(self, bundle: int, x: Any) -> Any:
        """What is kept."""
        ...

    def restored(self, bundle: int, kept: Any) -> Any:
        """An input with the same gradient as that which was kept."""
        ...


class Everything:
    """The `Saving` of all other models."""

    def source(self, bundle: int) -> int:
        return bundle

    def kept(self, bundle: int, x: Any) -> Any:
        return x

    def restored(self, bundle: int, kept: Any) -> Any:
        return kept


class SavedInputs:
    """Inputs by (layer, micro-batch), where a layer is any bundle.

    Args:
        stays: whether a layer's inputs stay on the device. The last layers' should: they are
            needed first, while others are on their way back.
    """

    def __init__(
        self,
        link: Link,
        stays: Callable[[int], bool],
        saving: Saving = Everything(),  # noqa: B008
    ):
        self._link, self._stays, self._saving = link, stays, saving
        self._here: dict[tuple[int, int], Any] = {}
        self._away: dict[tuple[int, int], Future[Any]] = {}

    def keep(self, layer: int, part: int, x: Any) -> None:
        if self._saving.source(layer) != layer:
            return
        x = self._saving.kept(layer, x)
        if self._stays(layer):
            self._here[layer, part] = x
        else:
            self._away[layer, part] = self._link.fetch(x)

    def has(self, layer: int, part: int) -> bool:
        return (layer, part) in self._here or (layer, part) in self._away

    def ahead(self, layer: int) -> None:
        """Send back what is on the host of this layer."""
        source = self._saving.source(layer)
        for at in [at for at in self._away if at[0] == source]:
            self._here[at] = self._link.send(self._away.pop(at).result())

    def look(self, layer: int, part: int) -> Any:
        """On the device."""
        at = self._saving.source(layer), part
        if at in self._away:
            self.ahead(layer)
        kept = self._here[at]
        if isinstance(kept, Future):
            kept = self._here[at] = kept.result()
        return self._saving.restored(layer, kept)

    def take(self, layer: int, part: int) -> Any:
        """`look`, for the last time."""
        x = self.look(layer, part)
        if self._saving.source(layer) == layer:  # the last of those that share it, going back
            del self._here[layer, part]
        return x
