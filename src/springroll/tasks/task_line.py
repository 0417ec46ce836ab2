"""A task as one line: its name, and options as NAME=VALUE, such as `countdown numbers=4`."""

import inspect
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from springroll.errors import InputError
from springroll.tasks.function_task import function_task
from springroll.tasks.problem import TextTask
from springroll.tasks.text_task import TASKS, text_task


def task_of_line(line: str, **usual: Any) -> TextTask:
    """The task of a line such as `arithmetic digits=3 operators=+-`.

    >>> task_of_line("arithmetic digits=1").train(0).prompt
    '1+2='

    Args:
        usual: options that hold where the line has no other, and the task knows them.

    Raises:
        InputError: as `text_task`; or an option without a value, or of another type.
    """
    try:
        name, *pairs = shlex.split(line)
    except ValueError:
        raise InputError(
            f"the task is {line!r}; expected a name and options, such as 'countdown numbers=4'"
        ) from None
    known = inspect.signature(TASKS.get(name, function_task)).parameters
    options = {key: value for key, value in usual.items() if key in known}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"{name}: {pair!r} is no option; expected NAME=VALUE")
        options[key] = typed(f"{name} {key}", value, known[key]) if key in known else value
    return text_task(name, **options)


def typed(what: str, value: str, known: inspect.Parameter) -> Any:
    """The value as the annotation asks for: a truth, a number or text; "None" where it allows that.

    Raises:
        InputError: it is none.
    """
    asked = {each.strip() for each in _spelling(known).split("|")}
    if value == "None" and "None" in asked:
        return None
    for kind, read in READERS.items():
        if kind in asked:
            try:
                return read(value)
            except (ValueError, KeyError):
                raise InputError(f"{what} is {value!r}; expected {KINDS[kind]}") from None
    return value


def _spelling(known: inspect.Parameter) -> str:
    kind = known.annotation
    return kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))


KINDS = {"bool": "true or false", "int": "a whole number", "float": "a number"}
READERS: Mapping[str, Callable[[str], Any]] = {
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "int": int,
    "float": float,
}
