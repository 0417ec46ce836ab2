"""The text tasks by name."""

import inspect
from collections.abc import Callable
from typing import Any

from springroll.errors import InputError
from springroll.tasks.arithmetic import arithmetic_task
from springroll.tasks.countdown import countdown_task
from springroll.tasks.problem import TextTask

TASKS: dict[str, Callable[..., TextTask]] = {
    "arithmetic": arithmetic_task,
    "countdown": countdown_task,
}


def text_task(name: str, **options: Any) -> TextTask:
    """A task by its name: "countdown", "arithmetic".

    >>> text_task("arithmetic", digits=1).train(0).prompt
    '1+2='

    Args:
        options: of the task; see `countdown_task`, `arithmetic_task`.

    Raises:
        InputError: an unknown name or option, or an option's value that cannot be.
    """
    if name not in TASKS:
        raise InputError(f"no task {name!r}; expected {', '.join(TASKS)} or module:function")
    make = TASKS[name]
    known = list(inspect.signature(make).parameters)
    unknown = [option for option in options if option not in known]
    if unknown:
        raise InputError(f"{name} has no option {unknown[0]!r}; it has {', '.join(known)}")
    return make(**options)
