"""When each layer gets a new subspace. Kept on the host, so that the hot step has no branch.

Layers take turns: with a period of 200 steps in 4 turns, a quarter of them is refreshed every 50
steps. The first call refreshes all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from springroll.subspace.streams import Stream


class Schedule(NamedTuple):
    """Host arrays (NumPy), int32; a part of the state like any other."""

    step: Any  # () calls so far
    next: dict[str, Any]  # stream -> (depth,) the call at which each layer is refreshed next
    gap: dict[str, Any]  # stream -> (depth,) calls between two refreshes of a layer


def start(streams: Sequence[Stream], period: int) -> Schedule:
    zeros = {s.name: np.zeros(s.depth, np.int32) for s in streams}
    gaps = {s.name: np.full(s.depth, period, np.int32) for s in streams}
    return Schedule(np.zeros((), np.int32), zeros, gaps)


def due(schedule: Schedule) -> dict[str, np.ndarray]:
    """stream -> (depth,) bool: the layers whose time has come."""
    return {name: np.asarray(at) <= np.asarray(schedule.step) for name, at in schedule.next.items()}


def refreshed(
    schedule: Schedule,
    streams: Sequence[Stream],
    layers: Mapping[str, np.ndarray],
    turns: int,
    overlap: Mapping[str, Any] | None = None,
    widen: float | None = None,
) -> Schedule:
    """The schedule after these layers were refreshed at the present call.

    The first time, layers are dealt out over the turns of a period. With `widen`, a layer whose
    new subspace has at least this overlap with the old one waits twice as long from now on.
    """
    now = int(schedule.step)
    nexts, gaps = dict(schedule.next), dict(schedule.gap)
    for stream in streams:
        name, chosen = stream.name, layers[stream.name]
        gap, at = np.array(gaps[name]), np.array(nexts[name])
        first = at == 0
        if widen is not None and overlap is not None:
            gap = np.where(chosen & ~first & (np.asarray(overlap[name]) >= widen), 2 * gap, gap)
        phase = -(-gap * (turn_of(stream, streams, turns) + 1) // turns)
        at = np.where(chosen, now + np.where(first, phase, gap), at)
        nexts[name], gaps[name] = at.astype(np.int32), gap.astype(np.int32)
    return schedule._replace(next=nexts, gap=gaps)


def advanced(schedule: Schedule) -> Schedule:
    """One call later."""
    return schedule._replace(step=schedule.step + 1)


def turn_of(stream: Stream, streams: Sequence[Stream], turns: int) -> np.ndarray:
    """(depth,) the turn of each layer of a stream: stacks by layer, single weights by order."""
    if stream.depth > 1:
        return np.arange(stream.depth) * turns // stream.depth
    single = [s.name for s in streams if s.depth == 1]
    return np.array([single.index(stream.name) * turns // len(single)])
