"""A reward function of the user's own: `module:function` or `path/file.py:function`.

    def shortness(texts: list[str]) -> list[float]:
        return [1 / (1 + len(text)) for text in texts]

With a second parameter (without a default, or None) it is also given the records of the problems.
It returns one result per text: a float, or a dict {"reward": float, "correct": bool, "formatted":
bool} whose last two may be left out. It may be `async def`.
"""

import importlib
import importlib.util
import inspect
import math
import numbers
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from springroll.errors import InputError
from springroll.tasks.problem import Verdict


class RewardFunction(NamedTuple):
    """A function that was found, and how to call it."""

    name: str
    function: Callable[..., Any]
    takes_records: bool
    is_async: bool

    def __call__(self, texts: Sequence[str], records: Sequence[Any]) -> Any:
        """What the function returns: results, or of an async one a coroutine."""
        arguments = [list(texts), list(records)]
        return self.function(*arguments[: 1 + self.takes_records])


def load_function(name: str) -> RewardFunction:
    """Find a function by its name.

    Modules are looked for where Python does and in the working folder.

    Raises:
        InputError: the module or file, or the function in it, is missing or cannot be called with
            texts; importing it raises.
    """
    where, _, function_name = name.rpartition(":")
    if not where or not function_name.isidentifier():
        raise InputError(
            f"no reward function {name!r}; expected module:function or file.py:function"
        )
    module = _from_file(where, name) if where.endswith(".py") else _from_module(where, name)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise InputError(f"{where} has no function {function_name!r}")
    count = _parameters(function)
    if not count:
        raise InputError(
            f"the reward function {name} takes no argument; expected (texts) or (texts, records)"
        )
    called = type(function).__call__ if not inspect.isroutine(function) else function
    is_async = any(map(inspect.iscoroutinefunction, (function, called)))
    return RewardFunction(name, function, count > 1, is_async)


def _parameters(function: Callable[..., Any]) -> int:
    """How many arguments it is to be given: 2 where it takes records. A second parameter that
    stands for something else than nothing, such as `scale=2.0`, is an option and left alone."""
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some built in
        return 1
    if any(p.kind is p.VAR_POSITIONAL for p in found):
        return 2
    positional = [p for p in found if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    wanted = [p for p in positional[1:2] if p.default is p.empty or p.default is None]
    return len(positional[:1]) + len(wanted)


def verdicts(results: Any, count: int, name: str) -> list[Verdict]:
    """The results of a reward function, checked.

    A plain float counts as correct from 1 on, and always as formatted.

    Raises:
        InputError: they are not `count`, or one is no finite number.
    """
    try:
        found = list(results)
    except TypeError:
        raise InputError(
            f"the reward function {name} returned {type(results).__name__}; expected a list of "
            f"{count} floats"
        ) from None
    if isinstance(results, str | dict) or len(found) != count:
        raise InputError(
            f"the reward function {name} returned {len(found)} results for {count} texts; "
            "expected one float per text"
        )
    return [_verdict(result, name, place) for place, result in enumerate(found)]


def what_raised(error: BaseException, name: str) -> str:
    """One line: what a reward function raised, and where."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    message = str(error).strip().split("\n")[0][:200]
    kind = type(error).__name__
    return f"the reward function {name} raised {kind}{': ' if message else ''}{message}{place}"


def _verdict(result: Any, name: str, place: int) -> Verdict:
    given = result if isinstance(result, dict) else {"reward": result}
    reward: Any = given.get("reward")
    if getattr(reward, "ndim", 1) == 0:
        reward = reward.item()  # a NumPy or JAX scalar
    if not isinstance(reward, numbers.Real) or not math.isfinite(reward):
        raise InputError(
            f"the reward function {name} returned {str(reward)[:40]} for text {place}; expected a "
            "finite float"
        )
    reward = float(reward)
    correct = bool(given.get("correct", reward >= 1))
    return Verdict(reward, correct, bool(given.get("formatted", True)))


def _from_module(where: str, name: str) -> Any:
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name == where or where.startswith(f"{error.name}."):
            raise InputError(
                f"no module {where!r} for the reward function {name}; run where it can be "
                "imported, or give path/file.py:function"
            ) from None
        raise InputError(f"cannot import {where}: {error}") from None
    except (Exception, SystemExit) as error:  # whatever the user's module raises
        raise InputError(f"cannot import {where}: {_one_line(error)}") from None


def _from_file(where: str, name: str) -> Any:
    path = Path(where).expanduser()
    spec = importlib.util.spec_from_file_location(f"_reward_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise InputError(f"no file {where} for the reward function {name}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's file raises
        raise InputError(f"cannot import {where}: {_one_line(error)}") from None
    return module


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0][:200]
