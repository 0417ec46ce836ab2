"""Options of a task are of the types that its annotations name, whoever gives them."""

import functools
import inspect
import numbers
import types
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

from springroll.errors import InputError, brief

P = ParamSpec("P")
R = TypeVar("R")


def options_checked(make: Callable[P, R]) -> Callable[P, R]:
    """`make`, which raises InputError for a value of another type than its parameter's.

    >>> @options_checked
    ... def task(*, digits: int = 2):
    ...     return digits
    >>> task(digits=3)
    3
    """
    signature, hints = inspect.signature(make), get_type_hints(make)

    @functools.wraps(make)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            hint = hints[name]
            kinds = hint.__args__ if isinstance(hint, types.UnionType) else (hint,)
            if not any(_fits(value, kind) for kind in kinds):
                expected = " or ".join(_word(kind) for kind in kinds)
                raise InputError(f"{name} is {brief(value)}; expected {expected}")
        return make(*args, **kwargs)

    return checked


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) is tuple:
        listed = isinstance(value, tuple | list)
        return listed and all(isinstance(each, get_args(kind)[0]) for each in value)
    if kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool)
    return isinstance(value, kind)


def _word(kind: Any) -> str:
    words = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}
    return words.get(kind, "None" if kind is types.NoneType else "several texts")
