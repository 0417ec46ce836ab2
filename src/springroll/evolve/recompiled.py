"""Functions that are made anew in every generation, each of which is compiled: noticed once."""

import functools
import warnings
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from types import CodeType

from springroll.trees import PyTree

IN_A_ROW = 4  # new functions of the same code, of which all but the first were compiled again


@dataclass
class _Made:
    """What was made of one piece of code: the functions seen, and how many were new in a row."""

    known: weakref.WeakSet[Callable[..., PyTree]] = field(default_factory=weakref.WeakSet)
    in_a_row: int = 0


_made: dict[CodeType | type, _Made] = {}  # by their code, or by the class of what has no hash


def notice(function: Callable[..., PyTree]) -> None:
    """Warn once if the same code has come as a new function object several times in a row."""
    code = _code(function)
    if code is None:
        return
    made = _made.setdefault(code, _Made())
    hashable = isinstance(function, Hashable)
    if hashable and function in made.known:
        made.in_a_row = 0
        return
    if hashable:
        made.known.add(function)
    made.in_a_row += 1
    if made.in_a_row == IN_A_ROW:
        warnings.warn(
            f"{_name(code)} is a new function object for the {IN_A_ROW}th time in a row, and each "
            "is compiled; make it once, outside of the loop, and pass what changes as an argument",
            UserWarning,
            stacklevel=4,
        )


def _code(function: Callable[..., PyTree]) -> CodeType | type | None:
    """What a function, a partial or a jitted function runs; None of what is not made in a loop."""
    if not isinstance(function, Hashable):
        return type(function)
    while True:
        inner = function.func if isinstance(function, functools.partial) else None
        inner = inner or getattr(function, "__wrapped__", None)
        if inner is None:
            # A bound method is a new object every time, and equal to the last one.
            bound = hasattr(function, "__self__")
            return None if bound else getattr(function, "__code__", None)
        function = inner


def _name(code: CodeType | type) -> str:
    if isinstance(code, type):
        return f"fn, a {code.__name__} without a hash,"
    return f"{code.co_qualname} ({code.co_filename}:{code.co_firstlineno})"
