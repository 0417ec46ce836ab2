"""Arguments of a function are of the types that its annotations name: one line where one is not."""

import collections.abc
import functools
import inspect
import numbers
import types
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

from springroll.errors import InputError, brief, kind_of

P = ParamSpec("P")
R = TypeVar("R")


def typed_call(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, which raises InputError for a value of another type than its parameter's.

    Numbers, text, truth values, functions and instances of classes are told apart; of other
    annotations everything is taken. True is no number.

    >>> @typed_call
    ... def task(*, digits: int = 2):
    ...     return digits
    >>> task(digits=3)
    3
    """
    signature, hints = inspect.signature(function), get_type_hints(function)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            hint = hints.get(name, Any)
            kinds = hint.__args__ if isinstance(hint, types.UnionType) else (hint,)
            if not any(_fits(value, kind) for kind in kinds):
                given = brief(value) if isinstance(value, numbers.Number | str) else kind_of(value)
                expected = " or ".join(_word(kind) for kind in kinds)
                raise InputError(f"{name} is {given}; expected {expected}")
        return function(*args, **kwargs)

    return checked


def _fits(value: Any, kind: Any) -> bool:
    origin = get_origin(kind)
    if origin is tuple:
        listed = isinstance(value, tuple | list)
        return listed and all(isinstance(each, get_args(kind)[0]) for each in value)
    if origin is collections.abc.Callable:
        return callable(value)
    if kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool)
    return not isinstance(kind, type) or isinstance(value, kind)


def _word(kind: Any) -> str:
    words = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}
    words |= {types.NoneType: "None"}
    if kind in words:
        return words[kind]
    if get_origin(kind) is collections.abc.Callable:
        return "a function"
    return f"a {kind.__name__}" if isinstance(kind, type) else "several texts"
