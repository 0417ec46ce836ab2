"""What the field of an option declares: its range, its former names, and whether it may change.

    device_memory: str | None = option(None, memory=True, changeable=True, formerly="memory")

One declaration serves the command line, `config.json` and Python: all three accept former names and
refuse values out of range with the same line. Imports no jax.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar, cast

from springroll.deprecation import warn_renamed
from springroll.errors import InputError, brief
from springroll.memory import parse_bytes
from springroll.ranges import (
    COUNT as COUNT,
)
from springroll.ranges import (
    LARGEST as LARGEST,
)
from springroll.ranges import (
    MOST as MOST,
)
from springroll.ranges import (
    NOT_NEGATIVE as NOT_NEGATIVE,
)
from springroll.ranges import (
    NOT_ZERO as NOT_ZERO,
)
from springroll.ranges import (
    PAIRS as PAIRS,
)
from springroll.ranges import (
    POSITIVE as POSITIVE,
)
from springroll.ranges import (
    PROCESSES as PROCESSES,
)
from springroll.ranges import (
    SECONDS as SECONDS,
)
from springroll.ranges import (
    SEED as SEED,
)
from springroll.ranges import (
    SHARE as SHARE,
)
from springroll.ranges import (
    TIMEOUT as TIMEOUT,
)
from springroll.ranges import (
    TINIEST as TINIEST,
)
from springroll.ranges import (
    UNIT_INTERVAL as UNIT_INTERVAL,
)
from springroll.ranges import (
    Number as Number,
)
from springroll.ranges import (
    Range as Range,
)
from springroll.ranges import (
    check_number as check_number,
)
from springroll.ranges import (
    read_number as read_number,
)

T = TypeVar("T")
C = TypeVar("C")

CHANGEABLE = MappingProxyType({"changeable": True})
"""Metadata of a field that may differ between a run and its continuation, as it does not say what
is computed but how long, how loudly, in what pieces: `field(default=1, metadata=CHANGEABLE)`."""


class FormerName(NamedTuple):
    """An earlier spelling of an option, and what its value is now."""

    name: str
    convert: Callable[[float], Number | None] | None = None  # None: the value means the same


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
