"""The process of an objective (see `springroll.worker`).

{"describe": true}                    ->  {"file": path of the source or ""}
{"initial": seed}                     ->  {"layout": ...} and weights, or {"failed": ...}
{"seed": seed, "layout": ...}, weights ->  {"value": float} or {"failed": kind, "line": line}
"""

import inspect
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from springroll.envs.objective_weights import Weights, packed, unpacked
from springroll.errors import InputError
from springroll.tasks.failures import Unusable, finite_number
from springroll.tasks.user_code import arguments_taken, named_function, raised_line
from springroll.worker import Answer, Message, Progress, serve

USUAL = "initial_weights"  # makes the first weights, if no other function is named


def main(progress: Progress, name: str, initial: str, timeout: str) -> None:
    """Serve the objective `name`, whose weights `initial` makes ("": `initial_weights` beside it).

    A call may take `timeout` seconds.
    """
    del progress  # a request is one call
    serve(lambda: loaded(name, initial), 2 * float(timeout) + 5)


def loaded(name: str, initial: str) -> Answer:
    """What answers.

    Raises:
        InputError: one of the functions cannot be found or called.
    """
    module, function = named_function(name, "the objective")
    if not arguments_taken(function):
        raise InputError(
            f"the objective {name} takes no argument; expected (weights) or (weights, seed)"
        )
    if initial:
        _, start = named_function(initial, "the function of initial weights")
    else:
        start = getattr(module, USUAL, None)
        if not callable(start):
            raise InputError(
                f"{name.rpartition(':')[0]} has no function {USUAL!r}; write one that returns the "
                "first weights as a dict of float32 arrays, or name one with --initial "
                "module:function"
            )
    start_name = initial.rpartition(":")[2] or USUAL
    return _Objective(name, function, start, start_name, getattr(module, "__file__", None) or "")


@dataclass(frozen=True)
class _Objective:
    name: str
    function: Callable[..., Any]
    initial: Callable[..., Any]
    initial_name: str
    file: str

    def __call__(self, request: Message, payload: bytes) -> tuple[Message, bytes]:
        if "describe" in request:
            return {"file": self.file}, b""
        try:
            if "initial" in request:
                return self._first(request["initial"])
            weights = unpacked(request["layout"], bytearray(payload))
            result = _seeded(self.function, [weights], 1, request["seed"])
            return {"value": finite_number(result)}, b""
        except Unusable as error:
            return {"failed": error.kind, "line": f"{self.name} returned {error.line}"}, b""
        except InputError as error:
            return {"failed": "wrong", "line": str(error)}, b""
        except (Exception, SystemExit) as error:  # whatever the user's function raises
            return {"failed": "raised", "line": raised_line(error)}, b""

    def _first(self, seed: int) -> tuple[Message, bytes]:
        layout, payload = packed(_seeded(self.initial, [], 0, seed), self.initial_name)
        return {"layout": layout}, payload


def _seeded(function: Callable[..., Any], given: list[Weights], place: int, seed: int) -> Any:
    """The function's result, with the seed as its argument at `place` if it takes one.

    Python's and NumPy's own generators start from the seed as well, so that a function that draws
    from them gives the same in whatever process it runs.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (those the user's code draws from)
    return function(*given, seed) if _takes_seed(function, place) else function(*given)


def _takes_seed(function: Callable[..., Any], place: int) -> bool:
    try:
        parameters = [*inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):  # some built in
        return False
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return True
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    at_place = [p for p in parameters if p.kind in positional][place : place + 1]
    return bool(at_place) and (
        at_place[0].default in (at_place[0].empty, None) or at_place[0].name == "seed"
    )
