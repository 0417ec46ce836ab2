"""Command lines to frozen dataclasses, by tyro; what does not fit is one line naming the nearest.

Options may be spelt with hyphens or underscores.
"""

import contextlib
import dataclasses
import difflib
import io
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeVar

from springroll.errors import InputError

C = TypeVar("C")


def parse(
    kind: type[C],
    argv: Sequence[str],
    *,
    prog: str,
    default: C | None = None,
    description: str | None = None,
    others: Iterable[str] = (),
) -> C:
    """`kind`, a dataclass, from a command line.

    Args:
        prog: the command's name, for messages.
        default: what options that are not given are taken from.
        description: shown by --help; the docstring of `kind` by default.
        others: options handled elsewhere, to suggest when one is misspelt.

    Raises:
        InputError: an unknown option or choice (the nearest is named), a value that does not fit.
        SystemExit: after --help.
    """
    import tyro

    _refuse_unknown(kind, argv, prog, others)
    _refuse_values(kind, argv)
    said = io.StringIO()
    extra: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, args=argv, prog=prog, description=description, **extra)
    except SystemExit as end:
        if not end.code:
            raise
        reason = _one_line(said.getvalue()).removeprefix(f"Error parsing {kind.__name__}: ")
        raise InputError(f"{reason} (see {prog} --help)") from None


def taken(argv: Sequence[str], option: str) -> tuple[str | None, list[str]]:
    """The last value of one option, in both spellings of its value, and the other arguments."""
    value, rest, left = None, [], iter(argv)
    for token in left:
        name, equals, inline = token.partition("=")
        if _hyphens(name) != option:
            rest.append(token)
            continue
        value = inline if equals else next(left, None)
        if value is None:
            raise InputError(f"{option} needs a value")
    return value, rest


def nearest(word: str, known: Iterable[str]) -> str:
    """'; did you mean X?' when something known resembles the word, else ''."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _hyphens(option: str) -> str:
    return option.replace("_", "-")


def _flags(kind: type) -> dict[str, Any]:
    """The options of a dataclass and the types of their values; of its parts as `--part.option`."""
    hints = typing.get_type_hints(kind, include_extras=True)
    flags: dict[str, Any] = {}
    for field in dataclasses.fields(typing.cast(Any, kind)):
        name, hint = _hyphens(field.name), hints[field.name]
        if dataclasses.is_dataclass(hint):
            inner = _flags(typing.cast(type, hint))
            flags |= {_within(name, flag): each for flag, each in inner.items()}
            continue
        flags["--" + name] = hint
        if hint is bool:
            flags["--no-" + name] = bool
        for note in getattr(hint, "__metadata__", ()):
            flags |= dict.fromkeys(getattr(note, "aliases", None) or (), hint)
    return flags


def _within(part: str, flag: str) -> str:
    """`--lr` of a part is `--part.lr`, and `--no-x` of it `--part.no-x`."""
    return f"--{part}.{flag.removeprefix('--')}"


def _refuse_unknown(kind: type, argv: Sequence[str], prog: str, others: Iterable[str]) -> None:
    known = [*_flags(kind), *others, "--help"]
    for token in argv:
        name = _hyphens(token.partition("=")[0])
        if name.startswith("--") and name not in known:
            hint = nearest(name, known) or f"; {prog} --help lists the options"
            raise InputError(f"unknown option {name}{hint}")


def _refuse_values(kind: type, argv: Sequence[str]) -> None:
    """A missing value, one that is not among an option's choices, or one that is no number."""
    for flag, hint in _flags(kind).items():
        if hint is bool:
            continue
        value = taken(argv, flag)[0]
        choices, number = _choices(hint), _number(hint)
        if value is None or (value == "None" and type(None) in _members(hint)):
            continue
        if choices and value not in choices:
            raise InputError(
                f"{flag} is {value!r}; expected one of {', '.join(choices)}"
                f"{nearest(value, choices)}"
            )
        if number is not None and not _reads_as(number, value):
            expected = "a whole number" if number is int else "a number"
            raise InputError(f"{flag} is {value!r}; expected {expected}")


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a union; of anything else itself."""
    if typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _choices(hint: Any) -> list[str]:
    literals = [each for each in _members(hint) if typing.get_origin(each) is Literal]
    return [str(choice) for each in literals for choice in typing.get_args(each)]


def _number(hint: Any) -> type | None:
    return next((each for each in _members(hint) if each in (int, float)), None)


def _reads_as(number: type, value: str) -> bool:
    try:
        number(value)
    except ValueError:
        return False
    return True


def _one_line(box: str) -> str:
    """The first paragraph of what tyro prints in a frame."""
    lines = [line.strip("│ ") for line in box.splitlines() if line.startswith("│")]
    rule = next((i for i, line in enumerate(lines) if line.startswith("─")), len(lines))
    return " ".join(lines[:rule]) or " ".join(box.split())
