"""The one error type that means "your input", not "our bug", and what stands in its line."""

import difflib
import inspect
import os
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LONGEST_PATH, LONGEST_NAME = 4095, 255  # bytes, on Linux; elsewhere no more
_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 80


class InputError(ValueError):
    """A value, file or flag the user gave cannot be used.

    The message is one line: what was given, what was expected, what to do. It may quote names out
    of files, so that it is made safe for a terminal (`one_line`). The command line prints it
    without a traceback and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def brief(value: object) -> str:
    """A value from a file as Python spells it, of any size and depth in about a line.

    >>> brief(list(range(1000)))
    '[0, 1, 2, 3, 4, 5, ...]'

    Args:
        value: as JSON gives it.
    """
    return _BRIEF.repr(value)


def one_line(text: str, most: int = 2000) -> str:
    """Text that is safe on a terminal: one line, without control characters, clipped.

    >>> one_line("so \\x1b[31m\\n it   goes on", most=9)
    'so \ufffd[3...'

    Args:
        text: Whatever it is: a model's answer, a name in a file, what somebody's code raised.
        most: Characters at most.
    """
    line = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text[: 4 * most].split()))
    return line if len(line) <= most else line[: most - 3] + "..."


def first_line(error: Exception, most: int) -> str:
    """What an error of a library says, in one line of so many characters, or its class."""
    return (str(error).strip() or type(error).__name__).split("\n")[0][:most]


def nearest(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The known name that resembles a word most; None where none does.

    >>> nearest("adamx", ["sgd", "adamw"])
    'adamw'

    Args:
        word: What was given.
        known: The names there are.
        cutoff: How much alike they must be, from 0 (not at all) to 1 (equal).
    """
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return matches[0] if matches else None


def suggestion(
    word: str, known: Iterable[str], *, otherwise: str = "", quoted: bool = False
) -> str:
    """The end of the line about an unknown name: "; did you mean X?", or what to say otherwise.

    >>> suggestion("adamx", ["sgd", "adamw"])
    '; did you mean adamw?'
    >>> suggestion("xyz", ["sgd", "adamw"], otherwise="there are sgd, adamw")
    '; there are sgd, adamw'

    Args:
        word: What was given.
        known: The names there are.
        otherwise: What to say where no name resembles it.
        quoted: Put the name in quotation marks.
    """
    name = nearest(word, known)
    if name is None:
        return f"; {otherwise}" if otherwise else ""
    return f"; did you mean {name!r}?" if quoted else f"; did you mean {name}?"


def kind_of(value: object) -> str:
    """What a value is, in a few words: the type and shape of an array, else its class.

    >>> import numpy as np
    >>> kind_of(np.zeros((3, 4), np.float32)), kind_of("adam"), kind_of(None), kind_of([1, 2])
    ('a float32[3,4]', "'adam'", 'None', 'a list')
    >>> kind_of(3), kind_of(np.zeros(3, np.int8)), kind_of(np.zeros(3, np.uint8))
    ('an int', 'an int8[3]', 'a uint8[3]')
    """
    if isinstance(value, str | None):
        return repr(value)
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None or dtype is None:
        return with_article(type(value).__name__)
    return with_article(f"{dtype}[{','.join(map(str, shape))}]")


def with_article(name: str) -> str:
    """The name of a type with "a" or "an" before it, by its first sound.

    >>> [with_article(name) for name in ("int", "uint8", "ndarray", "RWKV7", "PRNGKey")]
    ['an int', 'a uint8', 'an ndarray', 'an RWKV7', 'a PRNGKey']
    """
    letters = name[:2].isupper() or name.startswith("nd")  # spoken one by one
    vowels = "AEFHILMNORSX" if letters else "AEIO"
    return f"{'an' if name[:1].upper() in vowels else 'a'} {name}"


def expect(fits: bool, name: str, value: object, expected: str) -> None:
    """Raise InputError for an argument that does not fit: what it is, and what was expected.

    >>> expect(callable(abs), "fn", abs, "a function")

    Args:
        fits: Whether it does.
        name: Of the argument.
        value: What was given.
        expected: In a few words.
    """
    if not fits:
        raise InputError(f"{name} is {kind_of(value)}; expected {expected}")


def check_takes(fn: Any, name: str, *arguments: object, **named: object) -> None:
    """Raise InputError unless it is a function that can be called with these arguments.

    >>> check_takes(lambda generation: 0.1, "sigma", 0)

    What a function that other code wraps takes is what the wrapper says. One that does not say what
    it takes, as some of those written in C, is believed.

    Args:
        fn: What was given.
        name: Of the argument.
        *arguments: By position; only how many there are counts.
        **named: By name.
    """
    expect(callable(fn), name, fn, "a function")
    try:
        signature = inspect.signature(fn, follow_wrapped=False)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*arguments, **named)
    except TypeError as error:
        count = len(arguments) + len(named)
        called = getattr(fn, "__name__", type(fn).__name__) + one_line(str(signature), 80)
        given = f"{count} argument{'' if count == 1 else 's'}"
        raise InputError(f"{name} is {called}, which is called with {given}: {error}") from None


def as_path(value: object, name: str = "folder") -> Path:
    """A path that was given as text or as a `Path`.

    >>> as_path("runs/demo").name
    'demo'

    Args:
        value: What was given.
        name: Of the argument.

    Raises:
        InputError: None, a number, bytes or whatever else is no path, an empty text, one with a
            NUL or half a character, or longer than files may be called.
    """
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str):
        raise InputError(f"{name} is {kind_of(value)}; expected a path, as text or a pathlib.Path")
    why = _no_path(text)
    if why:
        raise InputError(f"{name} is {brief(text)}; expected a path, {why}")
    return Path(text)


def _no_path(text: str) -> str:
    """Why no file can be called so; empty if one can."""
    if not text:
        return "which is not empty"
    if "\0" in text:
        return "which has no NUL"
    try:
        name = os.fsencode(text)
    except UnicodeEncodeError:
        return "which has no half characters"
    long = len(name) > LONGEST_PATH or any(len(part) > LONGEST_NAME for part in name.split(b"/"))
    return f"whose names have {LONGEST_NAME} bytes at most" if long else ""
