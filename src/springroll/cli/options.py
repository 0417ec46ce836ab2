"""Command lines to frozen dataclasses, by tyro; what does not fit is one line naming the nearest.

Options may be spelt with hyphens or underscores. Former names of options (see
`springroll.run.options`) are understood, and what they are called now is said on standard error.
"""

import contextlib
import dataclasses
import functools
import inspect
import io
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeVar

from springroll.cli.help import help_text
from springroll.errors import InputError, brief, one_line, suggestion
from springroll.memory import parse_bytes
from springroll.run.options import FormerName, check_number, converted, number_kind, read_number

C = TypeVar("C")


def parse(
    kind: type[C],
    argv: Sequence[str],
    *,
    prog: str,
    default: C | None = None,
    description: str | None = None,
    others: Iterable[str] = (),
    epilog: str = "",
) -> C:
    """`kind`, a dataclass, from a command line.

    Args:
        kind: the dataclass of the options.
        argv: the arguments, without the name of the command.
        prog: the command's name, for messages.
        default: what options that are not given are taken from.
        description: shown by --help; the docstring of `kind` by default.
        others: options handled elsewhere, to suggest when one is misspelt.
        epilog: shown by --help behind the options.

    Raises:
        InputError: an unknown option or choice (the nearest is named), a value that does not fit.
        SystemExit: after --help.
    """
    argv, notes = _renamed(kind, argv)
    if "--help" in argv or "-h" in argv:
        text = inspect.getdoc(kind) if description is None else description
        help = help_text(
            kind, _flags_of, prog=prog, description=text or "", default=default or kind
        )
        print(f"{help}\n\n{epilog}" if epilog else help)
        raise SystemExit(0)
    _refuse_unknown(kind, argv, prog, others)
    _refuse_values(kind, argv)

    import tyro

    said = io.StringIO()
    extra: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(said):
            parsed = tyro.cli(kind, args=argv, prog=prog, **extra)
    except SystemExit as end:
        ours = _input_error(end)
        if ours is not None:  # tyro would print it in a frame
            raise InputError(f"{ours} (see {prog} --help)") from None
        # tyro names what it was building: the dataclass, or a part of it such as `ppo`.
        reason = re.sub(r"^Error parsing [\w.]+: ", "", _one_line(said.getvalue()))
        surplus = re.search(r"Unrecognized options: (.*?)( [-─]{3}|$)", reason)
        reason = f"unexpected argument: {surplus[1]}" if surplus else reason
        missing = re.search(r"Missing from .*?: \w+ (.*?)\.? \(required\)", reason)
        reason = f"an argument is missing: {missing[1]}" if missing else reason
        raise InputError(f"{reason} (see {prog} --help)") from None
    for note in notes:
        print(one_line(note), file=sys.stderr)
    return parsed


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


def _hyphens(option: str) -> str:
    return option.replace("_", "-")


class Flag(NamedTuple):
    """An option as it stands on a command line."""

    hint: Any  # the type of its value
    name: str = ""  # of the field, such as `ppo.lr`
    declared: Mapping[str, Any] = MappingProxyType({})  # see `run.options.option`
    former: FormerName | None = None  # set for the flag of a former name
    now: str = ""  # of a former name: the flag that it is called by now


@functools.cache
def _flags(kind: type) -> Mapping[str, Flag]:
    """The options of a dataclass by their flags; those of its parts as `--part.option`."""
    hints = typing.get_type_hints(kind, include_extras=True)
    flags: dict[str, Flag] = {}
    for field in dataclasses.fields(typing.cast(Any, kind)):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            part = _hyphens(field.name)
            for flag, inner in _flags(typing.cast(type, hint)).items():
                now = inner.now and _within(part, inner.now)
                name = f"{field.name}.{inner.name}"
                flags[_within(part, flag)] = inner._replace(now=now, name=name)
            continue
        names = _flags_of(field.name, hint)
        option = Flag(hint, field.name, field.metadata)
        flags |= dict.fromkeys(names, option)
        former: FormerName | None = field.metadata.get("former")
        if former is not None:
            flags["--" + _hyphens(former.name)] = option._replace(former=former, now=names[0])
    return flags


def _flags_of(name: str, hint: Any) -> list[str]:
    """The flags of one field, its own first; none for a positional argument."""
    from tyro.conf import Positional

    notes = getattr(hint, "__metadata__", ())
    if Positional in notes:
        return []
    spellings = [note for note in notes if hasattr(note, "aliases")]
    own = _hyphens(next((note.name for note in spellings if note.name), name))
    flags = ["--" + own] + (["--no-" + own] if hint is bool else [])
    return flags + [alias for note in spellings for alias in note.aliases or ()]


def _renamed(kind: type, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments with options under today's names, and a note on each under a former one."""
    former = {flag: about for flag, about in _flags(kind).items() if about.former}
    renamed, notes, rest = [], [], iter(argv)
    for token in rest:
        flag, equals, value = token.partition("=")
        flag = _hyphens(flag)
        if flag not in former:
            renamed.append(token)
            continue
        spelling, now = former[flag].former, former[flag].now
        assert spelling is not None
        said = f"note: {flag} is now called {now}"
        if spelling.convert is not None:
            value = value if equals else next(rest, None)
            if value is None:
                raise InputError(f"{flag} needs a value")
            new = converted(flag, spelling, value)
            equals, said = "=", f"note: {flag} {value} is now {now} {new}"
            value = str(new)
        notes.append(said)
        renamed.append(f"{now}{equals}{value}")
    return renamed, notes


def _within(part: str, flag: str) -> str:
    """`--lr` of a part is `--part.lr`, and `--no-x` of it `--part.no-x`."""
    return f"--{part}.{flag.removeprefix('--')}"


def _refuse_unknown(kind: type, argv: Sequence[str], prog: str, others: Iterable[str]) -> None:
    now = [flag for flag, about in _flags(kind).items() if about.former is None]
    known = [*now, *others, "--help"]
    for token in argv:
        name = _hyphens(token.partition("=")[0])
        if name.startswith("--") and name not in known:
            hint = suggestion(name, known, otherwise=f"{prog} --help lists the options")
            raise InputError(f"unknown option {name}{hint}")


def _refuse_values(kind: type, argv: Sequence[str]) -> None:
    """A missing value, one that is not among an option's choices, no number or out of range.

    What makes the dataclass checks the same; here it is said before tyro is loaded."""
    for flag, about in _flags(kind).items():
        hint = about.hint
        if hint is bool or about.former is not None:
            continue
        value = taken(argv, flag)[0]
        choices, number = _choices(hint), number_kind(hint)
        if value is None or (value == "None" and type(None) in _members(hint)):
            continue
        if choices and value not in choices:
            raise InputError(
                f"{flag} is {brief(value)}; expected one of {', '.join(choices)}"
                f"{suggestion(value, choices)}"
            )
        if number is not None:
            read = read_number(flag, value, number.kind)
            check_number(about.name, read, number.kind, about.declared.get("range"))
        if about.declared.get("memory"):
            parse_bytes(value, about.name)


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a union; of anything else itself."""
    if typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _choices(hint: Any) -> list[str]:
    literals = [member for member in _members(hint) if typing.get_origin(member) is Literal]
    return [str(choice) for member in literals for choice in typing.get_args(member)]


def _input_error(error: BaseException | None) -> InputError | None:
    """The InputError that this one was raised over, if there is one."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error


def _one_line(box: str) -> str:
    """The first paragraph of what tyro prints in a frame."""
    lines = [line.strip("│ ") for line in box.splitlines() if line.startswith("│")]
    rule = next((i for i, line in enumerate(lines) if line.startswith("─")), len(lines))
    return one_line(" ".join(lines[:rule]) or box, 500)
