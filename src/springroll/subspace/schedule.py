"""When each layer gets a new subspace. Kept on the host, so that the hot step has no branch.

Layers take turns: with an interval of 200 steps in 4 turns, a quarter of them is refreshed every 50
steps. The first call refreshes all.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jax.typing import ArrayLike

from springroll.subspace.per_path import PerPath, number_of
from springroll.subspace.streams import Stream
from springroll.trees import tree_dataclass


@tree_dataclass(saved_as={"interval": "gap"})
@dataclass(frozen=True)
class Schedule:
    """Host arrays (NumPy), int32; a part of the state like any other.

    step: () calls so far.
    next: stream -> (depth,) the call at which each layer is refreshed next.
    interval: stream -> (depth,) calls between two refreshes of a layer.
    """

    step: np.ndarray
    next: dict[str, np.ndarray]
    interval: dict[str, np.ndarray]


def start(streams: Sequence[Stream], refresh_interval: PerPath) -> Schedule:
    """The schedule before the first call, which refreshes all."""
    zeros = {s.name: np.zeros(s.depth, np.int32) for s in streams}
    every = {s.name: number_of(refresh_interval, s.name, "refresh_interval") for s in streams}
    intervals = {s.name: np.full(s.depth, every[s.name], np.int32) for s in streams}
    return Schedule(np.zeros((), np.int32), zeros, intervals)


def due(schedule: Schedule) -> dict[str, np.ndarray]:
    """stream -> (depth,) bool: the layers whose time has come."""
    return {name: np.asarray(at) <= np.asarray(schedule.step) for name, at in schedule.next.items()}


def refreshed(
    schedule: Schedule,
    streams: Sequence[Stream],
    layers: Mapping[str, np.ndarray],
    turns: int,
    overlap: Mapping[str, ArrayLike] | None = None,
    widen: float | None = None,
) -> Schedule:
    """The schedule after these layers were refreshed at the present call.

    The first time, layers are dealt out over the turns of an interval. With `widen`, a layer whose
    new subspace has at least this overlap with the old one waits twice as long from now on.
    """
    now = int(schedule.step)
    nexts, intervals = dict(schedule.next), dict(schedule.interval)
    for stream in streams:
        name, chosen = stream.name, layers[stream.name]
        interval, at = np.array(intervals[name]), np.array(nexts[name])
        first = at == 0
        if widen is not None and overlap is not None:
            wide = chosen & ~first & (np.asarray(overlap[name]) >= widen)
            interval = np.where(wide, 2 * interval, interval)
        phase = -(-interval * (turn_of(stream, streams, turns) + 1) // turns)
        at = np.where(chosen, now + np.where(first, phase, interval), at)
        nexts[name], intervals[name] = at.astype(np.int32), interval.astype(np.int32)
    return dataclasses.replace(schedule, next=nexts, interval=intervals)


def advanced(schedule: Schedule) -> Schedule:
    """One call later."""
    step = schedule.step + 1  # of NumPy a scalar, which is no array
    step = np.asarray(step) if isinstance(step, np.integer) else step
    return dataclasses.replace(schedule, step=step)


def turn_of(stream: Stream, streams: Sequence[Stream], turns: int) -> np.ndarray:
    """(depth,) the turn of each layer of a stream: stacks by layer, single weights by order."""
    if stream.depth > 1:
        return np.arange(stream.depth) * turns // stream.depth
    single = [s.name for s in streams if s.depth == 1]
    return np.array([single.index(stream.name) * turns // len(single)])
