"""What the numbers of any model's configuration have in common: they may come from a file."""

import math

import numpy as np

from springroll.errors import InputError, brief

MOST = 1 << 24  # of any size; the largest published vocabulary has a fiftieth of that
MOST_STACKED = 10_000  # layers, and experts of a layer: each is a tensor of its own in a file


def check_sizes(config: object, *names: str, least: int = 1, most: int = MOST) -> None:
    """Raise InputError unless these attributes are whole numbers from `least` to `most`."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int | np.integer) or isinstance(value, bool):
            raise InputError(f"{name} is {brief(value)}; it must be a whole number")
        if value < least:
            raise InputError(f"{name} is {value}; it must be at least {least}")
        if value > most:
            raise InputError(f"{name} is {value}; it must be at most {most:,}")


def check_numbers(config: object, *names: str, zero: bool = False) -> None:
    """Raise InputError unless these attributes are finite numbers above 0, or `zero` itself."""
    for name in names:
        value = getattr(config, name)
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if not number or not (value >= 0 if zero else value > 0) or not value < math.inf:
            least = "from 0" if zero else "above 0"
            raise InputError(f"{name} is {brief(value)}; it must be a finite number {least}")
