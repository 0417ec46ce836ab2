"""Calls and episodes of code that is not JAX: their seeds, and those that failed, counted."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

KINDS = {  # in the order in which they are told
    "crashed": "crashed",
    "timeout": "took too long",
    "raised": "raised",
    "nan": "came to NaN or infinity",
    "wrong": "came to something else than a number",
}


def reason(kind: str, line: str = "") -> str:
    """One failure: "it raised KeyError: 'a' (file.py:7)"."""
    if not line:
        return f"it {KINDS[kind]}"
    verb = {"timeout": "it took ", "raised": "it raised "}
    return verb.get(kind, "") + line


@dataclass
class Failures:
    """Calls or episodes that could not be scored."""

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


def pair_seeds(seed: int, generation: int, members: int, signs: int, episodes: int) -> np.ndarray:
    """Seeds (members, episodes) int64 in 0 .. 2^31 - 1, new ones in every generation.

    The `signs` members that share their noise (2 for antithetic pairs) share their seeds as well:
    their scores then differ by their weights alone.
    """
    draw = np.random.default_rng([seed, generation])
    seeds = draw.integers(0, 2**31, (members // signs, episodes))
    return np.repeat(seeds, signs, axis=0)
