"""The inputs of layers, kept for the backward pass: on the device or on the host."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from springroll.stream.link import Link


class SavedInputs:
    """Inputs by (layer, micro-batch).

    Args:
        stays: whether a layer's inputs stay on the device. The last layers' should: they are
            needed first, while others are on their way back.
    """

    def __init__(self, link: Link, stays: Callable[[int], bool]):
        self._link, self._stays = link, stays
        self._here: dict[tuple[int, int], Any] = {}
        self._away: dict[tuple[int, int], Future[Any]] = {}

    def keep(self, layer: int, part: int, x: Any) -> None:
        if self._stays(layer):
            self._here[layer, part] = x
        else:
            self._away[layer, part] = self._link.fetch(x)

    def has(self, layer: int, part: int) -> bool:
        return (layer, part) in self._here or (layer, part) in self._away

    def ahead(self, layer: int) -> None:
        """Send back what is on the host of this layer."""
        for at in [at for at in self._away if at[0] == layer]:
            self._here[at] = self._link.send(self._away.pop(at).result())

    def look(self, layer: int, part: int) -> Any:
        """On the device."""
        if (layer, part) in self._away:
            self.ahead(layer)
        kept = self._here[layer, part]
        if isinstance(kept, Future):
            kept = self._here[layer, part] = kept.result()
        return kept

    def take(self, layer: int, part: int) -> Any:
        """`look`, for the last time."""
        x = self.look(layer, part)
        del self._here[layer, part]
        return x
