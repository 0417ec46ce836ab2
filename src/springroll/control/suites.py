"""Environments by their ids."""

import difflib
import functools
from collections.abc import Callable

from springroll.control.cartpole import cartpole
from springroll.control.environment import Environment
from springroll.control.grid import grid
from springroll.control.pendulum import pendulum
from springroll.errors import InputError

BUILT_IN: dict[str, Callable[..., Environment]] = {
    "CartPole-v1": cartpole,
    "Pendulum-v1": pendulum,
    "Grid-5x5": grid,
}


@functools.cache
def environment(id: str, **options: object) -> Environment:
    """The environment of that id; the same object whenever it is asked for again.

    Args:
        id: as `springroll rl --list` prints it.
        options: `max_steps`, the longest an episode may be.

    Raises:
        InputError: no environment has that id; the nearest ones are named.
    """
    known = {name.lower(): name for name in BUILT_IN}
    if id.lower() not in known:
        near = difflib.get_close_matches(id.lower(), known, n=3, cutoff=0.3)
        names = ", ".join(known[name] for name in near) or ", ".join(BUILT_IN)
        raise InputError(f"no environment {id!r}; nearest: {names} (all: springroll rl --list)")
    return BUILT_IN[known[id.lower()]](**options)
