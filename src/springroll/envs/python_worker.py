"""The process that finds out what a function of the user's is (see `springroll.worker`).

{}  ->  {"kind": "objective", "gymnasium" or "environment"} or {"failed": [kind, line]}
"""

import inspect
from collections.abc import Callable
from typing import Any

from springroll.tasks.user_code import named_function, raised_line
from springroll.worker import Answer, Message, Progress, serve


def main(progress: Progress, name: str, timeout: str) -> None:
    """Tell what `name` is; calling it may take `timeout` seconds."""
    del progress  # there is one request
    serve(lambda: _answering(name), 2 * float(timeout) + 5)


def _answering(name: str) -> Answer:
    _, function = named_function(name, "the environment")
    return lambda *_: (kind_of_function(name, function), b"")


def kind_of_function(name: str, function: Callable[..., Any]) -> Message:
    """An objective must be given something; what makes an environment need not."""
    if _is_given_something(function):
        return {"kind": "objective"}
    try:
        result = function()
    except (Exception, SystemExit) as error:  # whatever the user's function raises
        return {"failed": ["raised", raised_line(error)]}
    if _is_ours(result):
        return {"kind": "environment"}
    if callable(getattr(result, "reset", None)) and callable(getattr(result, "step", None)):
        return {"kind": "gymnasium"}
    return {"failed": ["wrong", f"{name}() returned something of type {type(result).__name__}"]}


def _is_given_something(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some built in
        return True
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(p.kind in positional and p.default is p.empty for p in parameters)


def _is_ours(result: Any) -> bool:
    """Whether it is an `Environment`, without importing JAX to see."""
    kind = type(result)
    return (kind.__module__, kind.__name__) == ("springroll.envs.environment", "Environment")
