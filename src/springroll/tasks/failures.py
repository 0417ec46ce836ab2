"""What a user's code may do instead of returning a number, by kind: counted, and the first told."""

import itertools
import math
import numbers
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from springroll.ranges import LARGEST

KINDS = {  # in the order in which they are told
    "crashed": "crashed",
    "timeout": "took too long",
    "raised": "raised",
    "nan": "came to NaN or infinity",
    "wrong": "came to something else than a number",
    "none": "had no reward that applies",
}


class Unusable(Exception):
    """What a user's code returned is no finite number, or not as many as were asked for."""

    def __init__(self, kind: str, line: str) -> None:
        super().__init__(line)
        self.kind, self.line = kind, line


def finite_number(result: object) -> float:
    """A result as a float: of Python, NumPy, JAX or any library whose scalars have `item()`.

    >>> finite_number(True)
    1.0

    Raises:
        Unusable: it is something else ("wrong"), or no finite number of 32 bits ("nan").
    """
    value: Any = result
    shape = getattr(value, "shape", ())
    if shape == () and hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, numbers.Real):
        what = f"a {type(result).__name__}" if shape == () else f"an array of shape {[*shape]}"
        said = "None" if result is None else what
        raise Unusable("wrong", f"{said}; expected a finite float")
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        number = math.inf
    if not abs(number) <= LARGEST:
        whole = isinstance(value, numbers.Rational)
        said = "a number too large for a float" if whole else f"{number:g}"
        raise Unusable("nan", f"{said}; expected a finite float of 32 bits")
    return number


def as_many(results: object, count: int) -> list[object]:
    """The elements of what should be a list of `count` results.

    Raises:
        Unusable: it is no iterable, text, a dict, a set, which has no order, or of another length.
        Exception: what a generator of the user's raises.
    """
    no_list = str | bytes | dict | set | frozenset
    if isinstance(results, no_list) or not isinstance(results, Iterable):
        kind = "None" if results is None else f"a {type(results).__name__}"
        raise Unusable("wrong", f"{kind}; expected a list of {count} floats")
    values = list(itertools.islice(results, count + 1))
    if len(values) != count:
        said = f"more than {count}" if len(values) > count else f"{len(values)}"
        raise Unusable("wrong", f"{said} results for {count} texts; expected one float per text")
    return values


def reason(kind: str, line: str = "") -> str:
    """One failure: "it raised KeyError: 'a' (file.py:7)"."""
    if not line:
        return f"it {KINDS[kind]}"
    verb = {"timeout": "it took ", "raised": "it raised "}
    return verb.get(kind, "") + line


@dataclass
class Failures:
    """Texts, calls or episodes that could not be scored."""

    of: str
    """What is counted: "calls"."""
    counts: Counter[str] = field(default_factory=Counter)
    """By kind, see `KINDS`."""
    first: dict[str, str] = field(default_factory=dict)
    """Of a kind, what its first one said."""

    def add(self, kind: str, line: str = "", count: int = 1) -> None:
        self.counts[kind] += count
        if line:
            self.first.setdefault(kind, line)

    def merge(self, other: "Failures") -> None:
        for kind, count in other.counts.items():
            self.add(kind, other.first.get(kind, ""), count)

    @property
    def total(self) -> int:
        return self.counts.total()

    @property
    def kinds(self) -> str:
        """Such as "3 crashed; 2 raised, the first: KeyError: 'a' (file.py:7)"."""
        said = lambda kind: f", the first: {self.first[kind]}" if kind in self.first else ""
        known = [kind for kind in KINDS if self.counts[kind]]
        return "; ".join(f"{self.counts[kind]} {KINDS[kind]}{said(kind)}" for kind in known)

    @property
    def line(self) -> str:
        """The line for the end of a run; empty if nothing failed."""
        return f"{self.of} that could not be scored: {self.kinds}" if self.kinds else ""
