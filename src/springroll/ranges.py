"""Numbers that options take: ranges, and the one check of a value by kind and range."""

import math
import numbers
from dataclasses import dataclass
from typing import Any, cast

from springroll.errors import InputError, brief, check_takes, expect

Number = int | float

MOST = 2**31 - 1
"""The largest whole number of options that name no bound of their own: JAX counts in 32 bits."""
TINIEST, LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127
"""What floats of 32 bits hold without loss, apart from 0; others become 0 or infinity."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """The numbers that an option takes. Whatever it is, NaN and infinity are not in it, nor are
    floats that 32 bits do not hold, nor whole numbers above `MOST` where it has no other bound."""

    at_least: Number = -math.inf
    above: Number = -math.inf
    at_most: Number = math.inf
    below: Number = math.inf
    other_than: Number | None = None
    even: bool = False
    refusal: str = ""
    """What is said of another number, after "sigma is 0.0; ", instead of the bounds."""

    def __contains__(self, value: Number) -> bool:
        return not self.why_not(value)

    def why_not(self, value: Number) -> str:
        """Why a number is not taken, in words; empty if it is."""
        within = (
            abs(value) < math.inf  # neither NaN nor infinity
            and self.above < value < self.below
            and self.at_least <= value <= self.at_most
            and value != self.other_than
            and not (self.even and value % 2)
        )
        if not within:
            return str(self)
        if not isinstance(value, numbers.Integral):
            held = not value or TINIEST <= abs(value) <= LARGEST
            return "" if held else f"floats of 32 bits hold {TINIEST:.1e} to {LARGEST:.1e}"
        bounded = min(self.at_most, self.below) < math.inf
        return "" if bounded or abs(value) <= MOST else f"it must be at most {MOST:,}"

    def __str__(self) -> str:
        """The bounds in words.

        >>> print(Range(at_least=0), Range(at_least=1), Range(above=0), sep=", ")
        it must be 0 or more, it must be at least 1, it must be above 0
        >>> print(Range(at_least=0, below=1), Range(at_least=0, at_most=1), Range(), sep=", ")
        it must be from 0 to below 1, it must be from 0 to 1, it must be a finite number
        """
        if self.refusal:
            return self.refusal
        if self.above > -math.inf:
            most = f" and at most {self.at_most:,}" if self.at_most < math.inf else ""
            return f"it must be above {self.above}{most}"
        if self.other_than is not None:
            return f"it must not be {self.other_than}"
        if self.at_least == -math.inf:
            return "it must be a finite number"
        if self.at_most < math.inf:
            return f"it must be from {self.at_least} to {self.at_most:,}"
        if self.below < math.inf:
            return f"it must be from {self.at_least} to below {self.below}"
        return (
            "it must be 0 or more" if not self.at_least else f"it must be at least {self.at_least}"
        )


PAIRS = Range(at_least=2, even=True, refusal="members come in pairs: an even number, 2 or more")
"""Of a population of antithetic pairs."""
SECONDS = Range(at_least=0, at_most=10**9, refusal="it must be a number of seconds, from 0 to 10^9")
TIMEOUT = Range(above=0, at_most=10**6)
"""Seconds that a call may take."""
SEED = Range(at_least=0, below=2**63, refusal="it must be between 0 and 2^63 - 1")
SHARE = Range(at_least=0, below=1)
COUNT = Range(at_least=1)
PROCESSES = Range(at_least=1, at_most=1024)
"""Of worker processes, and of devices, each of which takes memory of its own."""
POSITIVE = Range(above=0)
NOT_NEGATIVE = Range(at_least=0)
NOT_ZERO = Range(other_than=0)
UNIT_INTERVAL = Range(at_least=0, at_most=1)
PORTION = Range(above=0, at_most=1)


def check_number(name: str, value: Any, kind: type, range: Range | None = None) -> None:
    """Raise an InputError unless a value is a number of a kind (int or float) and in a range."""
    wanted = numbers.Integral if kind is int else numbers.Real
    if not isinstance(value, wanted) or isinstance(value, bool):
        raise InputError(f"{name} is {brief(value)}; expected {NUMBERS[kind]}")
    why = (range or Range()).why_not(cast(Number, value))
    if why:
        # Python does not spell whole numbers of thousands of digits.
        huge = kind is int and abs(cast(int, value)) >= 10**40
        raise InputError(f"{name} is {'a number of over 40 digits' if huge else value}; {why}")


def check_scalar(
    name: str, value: Any, range: Range = NOT_NEGATIVE, expected: str = "a number"
) -> None:
    """Raise an InputError unless a value is a number in a range, or an array of one without axes.

    One that is traced, as `optax.inject_hyperparams` makes of numbers, has no value to look at.
    """
    if not isinstance(value, numbers.Real):
        expect(getattr(value, "shape", None) == (), name, value, expected)
        try:
            value = value.item()
        except TypeError:
            return
    check_number(name, value, float, range)


def check_rate(name: str, value: Any) -> None:
    """Raise an InputError unless a value is a number of 0 or more, or a schedule of such."""
    if callable(value):
        check_takes(value, name, 0)
    else:
        check_scalar(name, value, expected="a number or a schedule, a function of the step")


NUMBERS = {int: "a whole number", float: "a number"}


def read_number(name: str, text: str, kind: type) -> Number:
    """A number of a kind (int or float) as it stands on a command line.

    Raises:
        InputError: It is none, or spelt with other digits than 0 to 9.
    """
    try:
        return kind(text.encode("ascii").decode())
    except ValueError:
        raise InputError(f"{name} is {brief(text)}; expected {NUMBERS[kind]}") from None
