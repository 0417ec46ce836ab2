"""Numbers that may differ between parameters: ranks, and steps between two refreshes."""

import fnmatch
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from springroll.errors import InputError
from springroll.quant.transformation import whole

PerPath: TypeAlias = int | Mapping[str, int] | Callable[[str], int]
"""A number for all parameters; patterns on their paths and a number for each, of which later ones
win; or a function of the path."""


def per_path(value: PerPath, name: str) -> PerPath:
    """The same as Python integers; what a function returns is checked when it is called.

    Raises:
        InputError: a number below 1 or none at all, or an array that a function is traced with.
    """
    if isinstance(value, Mapping):
        return {pattern: whole(number, name) for pattern, number in value.items()}
    return value if callable(value) else whole(value, name)


def number_of(value: PerPath, path: str, name: str) -> int:
    """The number of one parameter.

    Raises:
        InputError: no pattern matches its path, or the function returns no such number.
    """
    if callable(value):
        return whole(value(path), f"{name} of {path}")
    if not isinstance(value, Mapping):
        return value
    found = [n for pattern, n in value.items() if fnmatch.fnmatchcase(path, pattern)]
    if not found:
        raise InputError(
            f"no pattern of {name} matches {path}: {', '.join(value)}; give '*' a number, or leave "
            "the parameter out with select"
        )
    return found[-1]


def warn_capped(capped: Sequence[tuple[str, Sequence[int], int, int]], *, stacklevel: int) -> None:
    """Say which ranks were too large for their matrices, in one line.

    Args:
        capped: (path, shape, rank that was asked for, rank that it has now) of each.
        stacklevel: as of `warnings.warn`, seen from the caller.
    """
    if not capped:
        return
    path, shape, asked, rank = capped[0]
    others = f", as in {len(capped) - 1} other parameters" if len(capped) > 1 else ""
    warnings.warn(
        f"rank {asked} is above the smaller side of {path} {list(shape)}; its rank is {rank}, with"
        f" which nothing is lost{others}",
        UserWarning,
        stacklevel=stacklevel + 1,
    )
