"""A reward function of the user's own: `module:function` or `path/file.py:function`.

    def shortness(texts: list[str]) -> list[float]:
        return [1 / (1 + len(text)) for text in texts]

With a second parameter (without a default, or None) it is also given the records of the problems.
It returns one result per text: a float, or a dict {"reward": float, "correct": bool, "formatted":
bool} whose last two may be left out. It may be `async def`.

Run as a worker process (see `springroll.worker`), this module serves an isolated reward function:

    {"texts": [...], "records": [...]}  ->  {"verdicts": [[reward, correct, formatted], ...]}
                                            {"raised": line} or {"refused": line}
"""

import asyncio
import functools
import inspect
import math
import numbers
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from springroll.errors import InputError
from springroll.tasks.user_code import arguments_taken, named_function, raised_line
from springroll.tasks.verdicts import Verdict
from springroll.worker import Message, Progress, serve


class RewardFunction(NamedTuple):
    """A function that was found, and how to call it."""

    name: str
    function: Callable[..., Any]
    takes_records: bool
    is_async: bool

    def __call__(self, texts: Sequence[str], records: Sequence[object]) -> Any:
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
    _, function = named_function(name, "the reward function")
    count = arguments_taken(function)
    if not count:
        raise InputError(
            f"the reward function {name} takes no argument; expected (texts) or (texts, records)"
        )
    called = type(function).__call__ if not inspect.isroutine(function) else function
    is_async = any(map(inspect.iscoroutinefunction, (function, called)))
    return RewardFunction(name, function, count > 1, is_async)


def verdicts(results: Iterable[object], count: int, name: str) -> list[Verdict]:
    """The results of a reward function, checked.

    A plain float counts as correct from 1 on, and always as formatted.

    Raises:
        InputError: they are not `count`, or one is no finite number.
    """
    try:
        values = list(results)
    except TypeError:
        raise InputError(
            f"the reward function {name} returned {type(results).__name__}; expected a list of "
            f"{count} floats"
        ) from None
    if isinstance(results, str | dict) or len(values) != count:
        raise InputError(
            f"the reward function {name} returned {len(values)} results for {count} texts; "
            "expected one float per text"
        )
    return [_verdict(result, name, place) for place, result in enumerate(values)]


def what_raised(error: BaseException, name: str) -> str:
    """One line: what a reward function raised, and where."""
    return f"the reward function {name} raised {raised_line(error)}"


def _verdict(result: object, name: str, place: int) -> Verdict:
    fields = result if isinstance(result, dict) else {"reward": result}
    reward: Any = fields.get("reward")
    if getattr(reward, "ndim", 1) == 0:
        reward = reward.item()  # a NumPy or JAX scalar
    if not isinstance(reward, numbers.Real) or not math.isfinite(reward):
        raise InputError(
            f"the reward function {name} returned {str(reward)[:40]} for text {place}; expected a "
            "finite float"
        )
    reward = float(reward)
    correct = bool(fields.get("correct", reward >= 1))
    return Verdict(reward, correct, bool(fields.get("formatted", True)))


def main(progress: Progress, name: str, timeout: str) -> None:
    """Serve the reward function `name`, whose calls may take `timeout` seconds."""
    del progress  # a request is one call
    serve(lambda: functools.partial(_answer, load_function(name)), 2 * float(timeout) + 5)


def _answer(function: RewardFunction, request: Message, payload: bytes) -> tuple[Message, bytes]:
    return _judged(function, request), payload


def _judged(function: RewardFunction, request: Message) -> Message:
    texts = request["texts"]
    try:
        results = function(texts, request["records"])
        if function.is_async:
            results = asyncio.run(results)
    except Exception as error:  # whatever the user's function raises
        return {"raised": what_raised(error, function.name)}
    try:
        return {"verdicts": verdicts(results, len(texts), function.name)}
    except InputError as error:
        return {"refused": str(error)}
