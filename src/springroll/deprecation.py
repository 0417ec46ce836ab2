"""Old spellings that work for one version more, each with a one-line DeprecationWarning."""

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def warn_renamed(old: str, new: str, *, stacklevel: int = 2) -> None:
    """Warn that `old` is now spelt `new`.

    Args:
        old: The old spelling, with what it belongs to: "the keyword 'gap' of plan".
        new: The new spelling.
        stacklevel: Whose line the warning names, as in `warnings.warn`: 1 is the function that
            calls this one, 2 its caller.
    """
    message = f"{old} is now {new}; the old spelling will not work in the next version"
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel + 1)


def renamed_keywords(**new_names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator: a function also accepts old keywords, with a warning.

    >>> @renamed_keywords(gap="update_interval")
    ... def schedule(*, update_interval=200):
    ...     return update_interval
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     schedule(gap=50)
    50
    >>> print(caught[0].message)
    the keyword 'gap' of schedule is now 'update_interval'; the old spelling will not work in the \
next version

    Signature, docstring and pickling stay those of the function, with the new names only.

    Args:
        **new_names: Old keyword -> new keyword.

    Returns:
        The decorator. A call with both spellings is a TypeError.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            for old, new in new_names.items():
                if old not in kwargs:
                    continue
                if new in kwargs:
                    raise TypeError(
                        f"{function.__name__} got {old!r} and {new!r}, which are the same"
                        f" keyword; give {new!r} alone"
                    )
                warn_renamed(f"the keyword {old!r} of {function.__name__}", repr(new))
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return wrapper

    return decorate
