r"""A task as one line: its name, and options as NAME=VALUE, such as `countdown numbers=4`.

Quotation marks hold words together. A backslash stands for itself; in `stop` it begins \n, \t
or \\.

The text tasks by name.
"""

import inspect
import re
import shlex
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

from springroll.errors import InputError, brief, expect, suggestion
from springroll.ranges import read_number
from springroll.tasks.arithmetic import arithmetic_task
from springroll.tasks.countdown import countdown_task
from springroll.tasks.gsm8k import gsm8k_task
from springroll.tasks.problem import TextTask
from springroll.tasks.user_task import function_task

Option: TypeAlias = bool | int | float | str | tuple[str, ...] | None

TASKS: dict[str, Callable[..., TextTask]] = {
    "arithmetic": arithmetic_task,
    "countdown": countdown_task,
    "gsm8k": gsm8k_task,
}


def text_task(name: str, **options: Option) -> TextTask:
    """A task by its name: "countdown", "arithmetic", "gsm8k", or a reward function of your own as
    "module:function" or "path/file.py:function".

    >>> text_task("arithmetic", digits=1).train(0).prompt
    '1+2='

    Args:
        options: of the task; see `countdown_task`, `arithmetic_task`, `gsm8k_task` and
            `function_task`.

    Raises:
        InputError: an unknown name or option, a value that cannot be, or data that cannot be read.
    """
    expect(isinstance(name, str), "the task", name, "a name such as 'countdown'")
    own = ":" in name
    if not own and name not in TASKS:
        expected = f"expected {', '.join(TASKS)} or module:function"
        raise InputError(f"no task {name!r}{suggestion(name, TASKS, otherwise=expected)}")
    make: Callable[..., TextTask] = partial(function_task, name) if own else TASKS[name]
    parameters = inspect.signature(make).parameters
    unknown = [option for option in options if option not in parameters]
    if unknown:
        known = f"it has {', '.join(parameters)}"
        hint = suggestion(unknown[0], parameters, otherwise=known)
        raise InputError(f"{name} has no option {unknown[0]!r}{hint}")
    missing = [o for o, p in parameters.items() if p.default is p.empty and o not in options]
    if missing:
        raise InputError(f"{name} needs the option {missing[0]!r}, of commands --{missing[0]}")
    values: dict[str, Any] = options  # each of the type that its parameter has
    return make(**values)


def task_of_line(line: str, **defaults: Option) -> TextTask:
    """The task of a line such as `arithmetic digits=3 operators=+-`.

    >>> task_of_line("arithmetic digits=1").train(0).prompt
    '1+2='

    Args:
        defaults: options that hold where the line has no other, and the task knows them.

    Raises:
        InputError: as `text_task`; or an option without a value, or of another type.
    """
    expect(isinstance(line, str), "the task", line, "a name and options, as text")
    try:
        name, *pairs = words_of(line)
    except ValueError:
        raise InputError(
            f"the task is {line!r}; expected a name and options, such as 'countdown numbers=4'"
        ) from None
    parameters = inspect.signature(TASKS.get(name, function_task)).parameters
    options = {key: value for key, value in defaults.items() if key in parameters}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"{name}: {pair!r} is no option; expected NAME=VALUE")
        options[key] = (
            typed(f"{name} {key}", value, parameters[key]) if key in parameters else value
        )
    return text_task(name, **options)


def words_of(line: str) -> list[str]:
    """The name and the options. A sum of rewards may have spaces around its signs.

    Raises:
        ValueError: there are none, or a quotation mark is left open.
    """
    lexer = shlex.shlex(line, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters, lexer.escape = True, "", ""
    name, *rest = lexer
    while rest and (name.endswith("+") or rest[0].startswith("+")):
        name += rest.pop(0)
    return [name, *rest]


def typed(what: str, value: str, parameter: inspect.Parameter) -> Option:
    """The value as the annotation asks for: a truth, a number or text; "None" where it allows that.

    Raises:
        InputError: it is none.
    """
    allowed = {kind.strip() for kind in _spelling(parameter).split("|")}
    if value == "None" and "None" in allowed:
        return None
    for name, read in READERS.items():
        if name in allowed:
            return read(what, value)
    return value


def _spelling(parameter: inspect.Parameter) -> str:
    kind = parameter.annotation
    return kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))


def _truth(what: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise InputError(f"{what} is {brief(text)}; expected true or false")
    return text.lower() == "true"


READERS: Mapping[str, Callable[[str, str], Option]] = {  # (what it is, its text) -> its value
    "bool": _truth,
    "int": lambda what, text: read_number(what, text, int),
    "float": lambda what, text: read_number(what, text, float),
    "tuple[str, ...]": lambda what, text: re.sub(
        r"\\([nt\\])", lambda found: {"n": "\n", "t": "\t"}.get(found[1], found[1]), text
    ),
}
