"""What the field of an option declares: its range, its former names, and whether it may change.

    device_memory: str | None = option(None, memory=True, changeable=True, formerly="memory")

One declaration serves the command line, `config.json` and Python: all three accept former names and
refuse values out of range with the same line. Imports no jax.
"""

import dataclasses
import functools
import math
import numbers
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar, cast

from springroll.deprecation import warn_renamed
from springroll.errors import InputError, brief
from springroll.memory import parse_bytes

T = TypeVar("T")
C = TypeVar("C")
Number = int | float

CHANGEABLE = MappingProxyType({"changeable": True})
"""Metadata of a field that may differ between a run and its continuation, as it does not say what
is computed but how long, how loudly, in what pieces: `field(default=1, metadata=CHANGEABLE)`."""


class FormerName(NamedTuple):
    """An earlier spelling of an option, and what its value is now."""

    name: str
    convert: Callable[[float], Number | None] | None = None  # None: the value means the same


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


def option(
    default: T,
    range: Range | None = None,
    *,
    changeable: bool = False,
    memory: bool = False,
    formerly: str | FormerName | None = None,
) -> T:
    """The field of an option: a dataclass field with metadata.

    Args:
        default: The option's value where none is given.
        range: The numbers it takes; None, where allowed, is always in it.
        changeable: Whether it may differ between a run and its continuation (see `CHANGEABLE`).
        memory: Whether its text is an amount of memory, such as "24GiB".
        formerly: The name it had in an earlier version.
    """
    former = FormerName(formerly) if isinstance(formerly, str) else formerly
    metadata = {
        "changeable": changeable,
        "range": range,
        "memory": memory,
        "former": former,
    }
    return cast(T, dataclasses.field(default=default, metadata=metadata))


def is_changeable(field: dataclasses.Field[Any]) -> bool:
    """Whether an option may differ between a run and its continuation."""
    return field.metadata.get("changeable", False)


def check_ranges(config: Any, prefix: str = "") -> None:
    """Raise an InputError that names the first option of a dataclass whose value is out of range,
    or is no number where its annotation says so.

    Args:
        config: The dataclass; its parts, which are dataclasses too, check themselves.
        prefix: What its options are called by, such as "ppo.".
    """
    kinds = number_kinds(type(config))
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        if isinstance(value, str) and field.metadata.get("memory"):
            parse_bytes(value, name)
        elif field.name in kinds and not (value is None and kinds[field.name].optional):
            check_number(name, value, kinds[field.name].kind, field.metadata.get("range"))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            check_number(name, value, type(value), field.metadata.get("range"))


class NumberKind(NamedTuple):
    """What numbers the annotation of an option admits."""

    kind: type  # int or float
    optional: bool  # None as well


def number_kind(hint: Any) -> NumberKind | None:
    """What numbers an annotation admits: `int`, `float | None`, Annotated or not.

    None where it admits something else as well, or no numbers."""
    if typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    members = typing.get_args(hint) if union else (hint,)
    others = [member for member in members if member not in (int, float, type(None))]
    found = [member for member in members if member in (int, float)]
    return NumberKind(found[-1], type(None) in members) if found and not others else None


@functools.cache
def number_kinds(kind: type) -> dict[str, NumberKind]:
    """The numeric options of a dataclass."""
    hints = typing.get_type_hints(kind, include_extras=True)
    found = {name: number_kind(hint) for name, hint in hints.items()}
    return {name: number for name, number in found.items() if number is not None}


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


def former_names(kind: Any) -> dict[str, tuple[str, FormerName]]:
    """The earlier spellings of a dataclass's options: former name -> (name now, spelling)."""
    former = {field.name: field.metadata.get("former") for field in dataclasses.fields(kind)}
    return {spelling.name: (name, spelling) for name, spelling in former.items() if spelling}


def renamed_options(kind: Any, options: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Options under today's names, and one line for each that was given under an earlier one.

    Raises:
        InputError: The value of an earlier spelling has no equivalent.
    """
    former, renamed, notes = former_names(kind), {}, []
    for name, value in options.items():
        if name not in former:
            renamed.setdefault(name, value)
            continue
        new, spelling = former[name]
        renamed[new] = value
        notes.append(f"{name} is now called {new}")
        if spelling.convert is not None and value is not None:
            renamed[new] = converted(name, spelling, value)
            notes[-1] = f"{name} {value} is now called {new} {renamed[new]}"
    return renamed, notes


def converted(name: str, former: FormerName, value: Any) -> Any:
    """The value of an option under a former name as it is given now."""
    assert former.convert is not None
    try:
        number = read_number(name, value, float) if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} is {brief(value)}; expected a number") from None
    try:
        return former.convert(number)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def accepts_former_names(kind: type[C]) -> type[C]:
    """Decorator of a dataclass: its constructor accepts options under their former names too, each
    with a DeprecationWarning."""
    init = kind.__init__

    @functools.wraps(init)
    def __init__(self: C, **options: Any) -> None:
        former = former_names(kind)
        for name in options:
            if name in former:
                warn_renamed(f"the option {name!r} of {kind.__name__}", repr(former[name][0]))
        init(self, **renamed_options(kind, options)[0])

    kind.__init__ = __init__  # type: ignore[method-assign]
    return kind
