"""Arguments of a function are of the types that its annotations name: one line where one is not."""

import collections.abc
import functools
import inspect
import numbers
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

from springroll.errors import InputError, brief, kind_of
from springroll.ranges import Range, check_number

P = ParamSpec("P")
R = TypeVar("R")


def typed_call(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, which raises InputError for a value of another type than its parameter's.

    Numbers, text, truth values, functions, choices, sequences and instances of classes are told
    apart; of other annotations everything is taken. True is no number. A number that is annotated
    with a `Range` must be in it.

    >>> @typed_call
    ... def task(*, digits: int = 2):
    ...     return digits
    >>> task(digits=3)
    3
    """
    signature = inspect.signature(function)
    hints = get_type_hints(function, include_extras=True)
    expected_of = {name: _opened(hints.get(name, Any)) for name in signature.parameters}

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            kinds, range = expected_of[name]
            if not any(_fits(value, kind) for kind in kinds):
                given = brief(value) if isinstance(value, numbers.Number | str) else kind_of(value)
                expected = " or ".join(_word(kind) for kind in kinds)
                raise InputError(f"{name} is {given}; expected {expected}")
            if range is not None and isinstance(value, numbers.Real):
                check_number(name, value, float if float in kinds else int, range)
        return function(*args, **kwargs)

    return checked


def _opened(hint: Any) -> tuple[tuple[Any, ...], Range | None]:
    """(the types, the range that they are annotated with)"""
    range = None
    if get_origin(hint) is Annotated:
        range = next((x for x in hint.__metadata__ if isinstance(x, Range)), None)
        hint = get_args(hint)[0]
    return hint.__args__ if isinstance(hint, types.UnionType) else (hint,), range


def _fits(value: Any, kind: Any) -> bool:
    origin = get_origin(kind)
    if origin is Literal:
        return isinstance(value, str | int) and value in get_args(kind)
    if origin is collections.abc.Sequence:
        value = list(np.asarray(value)) if getattr(value, "ndim", 0) else value
        listed = isinstance(value, collections.abc.Sequence) and not isinstance(value, str | bytes)
        return listed and _all_fit(value, get_args(kind)[0])
    if kind is bool:
        return isinstance(value, bool | np.bool_)
    if origin is tuple:
        listed = isinstance(value, tuple | list)
        return listed and all(isinstance(each, get_args(kind)[0]) for each in value)
    if origin is collections.abc.Callable:
        return callable(value)
    if kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool)
    if kind is Any or not isinstance(kind, type):
        return True
    tells = not getattr(kind, "_is_protocol", False) or getattr(kind, "_is_runtime_protocol", False)
    return not tells or isinstance(value, kind)


def _all_fit(values: collections.abc.Sequence[Any], kind: Any) -> bool:
    """Whether each does; one of every type is looked at where its type alone decides."""
    told = values if get_origin(kind) is not None else {type(x): x for x in values}.values()
    return all(_fits(each, kind) for each in told)


def _word(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) is collections.abc.Sequence:
        return "a list"
    words = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}
    words |= {types.NoneType: "None"}
    if kind in words:
        return words[kind]
    if get_origin(kind) is collections.abc.Callable:
        return "a function"
    return f"a {kind.__name__}" if isinstance(kind, type) else "several texts"
