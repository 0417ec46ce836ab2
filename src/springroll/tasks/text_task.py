"""The text tasks by name."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from springroll.errors import InputError
from springroll.tasks.arithmetic import arithmetic_task
from springroll.tasks.countdown import countdown_task
from springroll.tasks.function_task import function_task
from springroll.tasks.gsm8k import gsm8k_task
from springroll.tasks.problem import TextTask

TASKS: dict[str, Callable[..., TextTask]] = {
    "arithmetic": arithmetic_task,
    "countdown": countdown_task,
    "gsm8k": gsm8k_task,
}


def text_task(name: str, **options: Any) -> TextTask:
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
    own = ":" in name
    if not own and name not in TASKS:
        raise InputError(f"no task {name!r}; expected {', '.join(TASKS)} or module:function")
    make = partial(function_task, name) if own else TASKS[name]
    known = inspect.signature(make).parameters
    unknown = [option for option in options if option not in known]
    if unknown:
        raise InputError(f"{name} has no option {unknown[0]!r}; it has {', '.join(known)}")
    missing = [o for o, p in known.items() if p.default is p.empty and o not in options]
    if missing:
        raise InputError(f"{name} needs the option {missing[0]!r}")
    return make(**options)
