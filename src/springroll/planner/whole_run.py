"""What a whole training costs: steps, days, and money at a price per hour."""

import re
from typing import NamedTuple

from springroll.errors import InputError, brief
from springroll.ranges import NOT_NEGATIVE, check_number

LARGEST = 10**18  # tokens
THOUSANDS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
HOUR, DAY = 3600.0, 86400.0


class WholeRun(NamedTuple):
    """A training of so many tokens: its steps, its days, and its price where an hour has one."""

    tokens: int
    steps: int
    days: float
    price: float | None


def whole_run(
    total_tokens: int, tokens_per_step: int, step: float, price: float | None = None
) -> WholeRun:
    """The steps of a training, each of so many seconds, and what they cost.

    >>> whole_run(10**9, 2**14, step=1.0, price=2.5)
    WholeRun(tokens=1000000000, steps=61036, days=0.7064..., price=42.38...)

    Args:
        total_tokens: that are trained on; the last step is a whole one.
        step: seconds.
        price: of an hour of the machine, all its devices together.
    """
    if price is not None:
        check_number("price", price, float, NOT_NEGATIVE)
    steps = -(-total_tokens // tokens_per_step)
    seconds = steps * step
    return WholeRun(
        total_tokens, steps, seconds / DAY, None if price is None else price * seconds / HOUR
    )


def tokens_of(text: str) -> int:
    """'10B', '1.5T', '300M' or a whole number of tokens.

    >>> tokens_of("1.5B"), tokens_of("300_000")
    (1500000000, 300000)

    Raises:
        InputError: it is none, or less than one or more than 10^18.
    """
    match = re.fullmatch(r"\s*([0-9][0-9_,]*(?:\.[0-9]+)?)\s*([KMBT]?)\s*", text, re.IGNORECASE)
    if match is None or len(text) > 40:
        raise InputError(f"total-tokens is {brief(text)}; expected a number such as 10B or 300M")
    tokens = float(re.sub("[_,]", "", match[1])) * THOUSANDS[match[2].upper()]
    if not 1 <= tokens <= LARGEST:
        raise InputError(f"total-tokens is {brief(text)}; it must be from 1 to 10^18")
    return round(tokens)
