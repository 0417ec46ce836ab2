"""Gymnasium's spaces as ours: actions, and observations as flat vectors of float32.

Spaces are known by what they have (`n`, `nvec`, `low` and `high`, `spaces`), not by their classes:
an environment need not import gymnasium.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from springroll.envs.environment import Actions, Box, Discrete, MultiDiscrete
from springroll.errors import InputError

Flat = Callable[[Any], np.ndarray]  # an observation as numbers (size,), to be put into float32
Native = Callable[[np.ndarray], list[Any]]  # actions (n, ...) of ours to n ones of the environment


def actions_of(space: Any) -> tuple[Actions, Native]:
    """Our actions for an action space, and their way back.

    Raises:
        InputError: of another kind, or without bounds.
    """
    if type(space).__name__ == "MultiBinary" and isinstance(space.n, int | np.integer):
        return MultiDiscrete((2,) * int(space.n)), lambda x: list(x.astype(np.int8))
    if hasattr(space, "n") and np.ndim(space.n) == 0:
        first = int(getattr(space, "start", 0))
        return Discrete(int(space.n)), lambda x: (x + first).tolist()
    if hasattr(space, "nvec") and np.ndim(space.nvec) == 1:
        first = np.asarray(getattr(space, "start", 0))
        counts = tuple(int(count) for count in space.nvec)
        return MultiDiscrete(counts), lambda x: list((x + first).astype(np.int64))
    if hasattr(space, "low") and hasattr(space, "high"):
        return _box(space)
    raise InputError(
        f"its actions are {type(space).__name__}; expected a space with n (Discrete), nvec "
        "(MultiDiscrete) or low and high (Box)"
    )


def flat_of(space: Any) -> Flat:
    """What makes vectors of observations: boxes as they are, choices one-hot, parts in order.

    Without a space (None) an observation is taken for an array of numbers.
    """
    if hasattr(space, "spaces"):  # Dict, Tuple
        parts = space.spaces
        keys = list(parts) if hasattr(parts, "keys") else list(range(len(parts)))
        inner = [(key, flat_of(parts[key])) for key in keys]
        return lambda x: np.concatenate([flat(x[key]) for key, flat in inner])
    if hasattr(space, "n") and type(space).__name__ != "MultiBinary":
        rows, first = np.eye(int(space.n), dtype=np.float32), int(getattr(space, "start", 0))
        return lambda x: rows[int(x) - first]
    if hasattr(space, "nvec") and np.ndim(space.nvec) == 1:
        tables = [np.eye(int(count), dtype=np.float32) for count in space.nvec]
        return lambda x: np.concatenate([t[int(i)] for t, i in zip(tables, x, strict=True)])
    return _numbers


def _numbers(observation: Any) -> np.ndarray:
    if type(observation) is np.ndarray and observation.ndim == 1:
        return observation  # converted where it is put
    return np.asarray(observation, np.float32).reshape(-1)


def _box(space: Any) -> tuple[Actions, Native]:
    low, high = (np.asarray(x, np.float64) for x in (space.low, space.high))
    shape = tuple(getattr(space, "shape", None) or low.shape)
    low, high = (np.broadcast_to(x, shape).reshape(-1) for x in (low, high))
    if not (np.isfinite(low) & np.isfinite(high)).all():
        raise InputError(
            "its actions have no bounds; wrap it in gymnasium.wrappers.RescaleAction or give its "
            "action space finite low and high"
        )
    dtype = np.dtype(getattr(space, "dtype", None) or np.float32)
    bounds = (tuple(map(float, low)), tuple(map(float, high)))
    return Box(*bounds), lambda x: list(x.reshape(len(x), *shape).astype(dtype, copy=False))
