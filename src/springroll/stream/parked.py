"""What waits between two layers: on the device while it fits, else in host memory."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

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
