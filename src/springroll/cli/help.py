"""What `springroll COMMAND --help` prints: a dataclass of options as plain text.

tyro parses command lines; its own help would show types such as `{None}|INT`, break lines in the
middle of sentences, and colour them whatever NO_COLOR says.
"""

import ast
import dataclasses
import inspect
import shutil
import textwrap
import typing
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

WIDEST = 100  # columns of text
COLUMN = 26  # where descriptions begin


class Entry(NamedTuple):
    """One option of the list."""

    spelling: str  # such as "--steps, --generations INT"
    text: str


def help_text(
    kind: type, flags: Callable[[str, Any], list[str]], *, prog: str, description: str, default: Any
) -> str:
    """The help of a command.

    Args:
        kind: The dataclass of its options.
        flags: (name, type) of a field -> its flags; none for a positional argument.
        prog: The command's name.
        description: What it does; a line that begins with a space is left as it is.
        default: Where defaults are taken from: an instance of `kind`, or `kind` itself.
    """
    width = min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns)
    entries, positional = [Entry("-h, --help", "Show this help.")], []
    for entry, is_option in _entries(kind, flags, default, ""):
        (entries if is_option else positional).append(entry)
    words = [prog, *(entry.spelling for entry in positional), "[OPTIONS]"]
    lines = [f"usage: {' '.join(words)}", "", *_filled(description, width)]
    for title, group in (("arguments", positional), ("options", entries)):
        if group:
            lines += ["", f"{title}:"]
            lines += [line for entry in group for line in _laid_out(entry, width)]
    return "\n".join(lines)


def _entries(
    kind: type, flags: Callable[[str, Any], list[str]], default: Any, part: str
) -> Iterator[tuple[Entry, bool]]:
    """The options of a dataclass and of its parts, and whether each is no positional argument."""
    hints, texts = typing.get_type_hints(kind, include_extras=True), docstrings(kind)
    for field in dataclasses.fields(kind):
        hint, value = hints[field.name], _default(field, default)
        if dataclasses.is_dataclass(hint):
            inner = typing.cast(type, hint)
            yield from _entries(inner, flags, value, f"{part}{field.name.replace('_', '-')}.")
            continue
        names = [f"--{part}{flag.removeprefix('--')}" for flag in flags(field.name, hint)]
        text = " ".join(texts.get(field.name, "").split())
        if not names:
            name = field.name.upper()
            yield Entry(name if value is dataclasses.MISSING else f"[{name}]", text), False
            continue
        if hint is bool:
            names = names if value else names[:1]
            value = names[0] if value else None
        if value is not None and value != "":
            text = f"{text} (default: {value})".strip()
        yield Entry(" ".join([", ".join(names), *_metavar(hint)]), text), True


def docstrings(kind: type) -> dict[str, str]:
    """The strings that stand below the fields of a dataclass and of those it extends."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                texts[field.target.id] = str(text.value.value)
    return texts


def _default(field: dataclasses.Field[Any], default: Any) -> Any:
    """The value of an option that is not given."""
    if not isinstance(default, type):
        return getattr(default, field.name)
    if field.default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _metavar(hint: Any) -> list[str]:
    """What stands for the value of an option; nothing for one that takes none."""
    if typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    members = [member for member in typing.get_args(hint) if member is not type(None)] or [hint]
    if typing.get_origin(hint) is typing.Literal:
        members = [hint]
    choices = [
        str(choice)
        for member in members
        if typing.get_origin(member) is typing.Literal
        for choice in typing.get_args(member)
    ]
    if choices:
        return ["{" + ",".join(choices) + "}"]
    if bool in members:
        return []
    return ["INT" if int in members else "FLOAT" if float in members else "TEXT"]


def _laid_out(entry: Entry, width: int) -> list[str]:
    """The spelling on the left, the text beside it, or below where there is no room."""
    indent = " " * COLUMN
    lines = textwrap.wrap(entry.text, width - COLUMN) or [""]
    first = f"  {entry.spelling}"
    if len(first) + 2 <= COLUMN:
        head, *rest = lines
        return [f"{first:{COLUMN}}{head}".rstrip(), *(indent + line for line in rest)]
    return [first, *(indent + line for line in lines)]


def _filled(text: str, width: int) -> list[str]:
    """Paragraphs filled to the width; indented lines as they are."""
    lines = []
    for paragraph in textwrap.dedent(text).strip().split("\n\n"):
        if any(line.startswith(" ") for line in paragraph.splitlines()):
            lines += [*paragraph.splitlines(), ""]
        else:
            lines += [*textwrap.wrap(" ".join(paragraph.split()), width), ""]
    return lines[:-1]
