"""What the field of an option declares: its range, its former names, and whether it may change.

    device_memory: str | None = option(None, memory=True, changeable=True, formerly="memory")

One declaration serves the command line, `config.json` and Python: all three accept former names and
refuse values out of range with the same line. Imports no jax.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar, cast

from springroll.deprecation import warn_renamed
from springroll.errors import InputError
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


@dataclass(frozen=True, kw_only=True)
class Range:
    """The numbers that an option takes. Whatever it is, NaN and infinity are not in it."""

    at_least: Number = -math.inf
    above: Number = -math.inf
    at_most: Number = math.inf
    below: Number = math.inf
    other_than: Number | None = None
    even: bool = False
    refusal: str = ""
    """What is said of another number, after "sigma is 0.0; ", instead of the bounds."""

    def __contains__(self, value: Number) -> bool:
        return (
            math.isfinite(value)
            and self.above < value < self.below
            and self.at_least <= value <= self.at_most
            and value != self.other_than
            and not (self.even and value % 2)
        )

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
            return f"it must be above {self.above}"
        if self.other_than is not None:
            return f"it must not be {self.other_than}"
        if self.at_least == -math.inf:
            return "it must be a finite number"
        if self.at_most < math.inf:
            return f"it must be from {self.at_least} to {self.at_most}"
        if self.below < math.inf:
            return f"it must be from {self.at_least} to below {self.below}"
        return (
            "it must be 0 or more" if not self.at_least else f"it must be at least {self.at_least}"
        )


PAIRS = Range(at_least=2, even=True, refusal="members come in pairs: an even number, 2 or more")
"""Of a population of antithetic pairs."""
SECONDS = Range(at_least=0, refusal="it must be a number of seconds, 0 or more")
SEED = Range(at_least=0, below=2**63, refusal="it must be between 0 and 2^63 - 1")
SHARE = Range(at_least=0, below=1)
COUNT = Range(at_least=1)
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
    """Raise an InputError that names the first option of a dataclass whose value is out of range.

    Args:
        config: The dataclass; its parts, which are dataclasses too, check themselves.
        prefix: What its options are called by, such as "ppo.".
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, str) and field.metadata.get("memory"):
            parse_bytes(value, prefix + field.name)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            range = field.metadata.get("range") or Range()
            if value not in range:
                raise InputError(f"{prefix}{field.name} is {value}; {range}")


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
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{name} is {value!r}; expected a number") from None
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
