"""Strings that end a text, wherever tokens cut them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from springroll.tokens.tokenizer import check_stop

MARGIN = 8  # tokens before those that can hold a stop string: some decode to no or half a character


@dataclass(frozen=True)
class StopStrings:
    """What ends a text.

    Args:
        strings: Of one character or more.
        decode: Tokens to text.

    Raises:
        InputError: A string is empty.
    """

    strings: tuple[str, ...]
    decode: Callable[[Sequence[int]], str]

    def __post_init__(self) -> None:
        check_stop(self.strings)

    def ends(self, tokens: np.ndarray, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """Where texts end: the first number of tokens above `start` that hold a stop string, or -1.

        `tokens` (n, most) hold stop[i] tokens of text i, and its first start[i] no stop string.
        """
        longest = max((len(text.encode(errors="replace")) for text in self.strings), default=0)
        first = np.maximum(0, start - longest - MARGIN)
        # Short texts are often the same: each is decoded once.
        width = int((stop - first).max(initial=0))
        at = first[:, None] + np.arange(width)
        there = at < stop[:, None]
        part = np.take_along_axis(tokens, np.minimum(at, tokens.shape[1] - 1), axis=1)
        keys = np.column_stack([np.where(there, part, -1), stop - first, start - first])
        unique, source = np.unique(keys, axis=0, return_inverse=True)
        found = [self._end(key[: key[-2]].tolist(), int(key[-1])) for key in unique]
        cut = np.array(found, np.int64)[source.reshape(-1)]
        return np.where(cut < 0, cut, cut + first)

    def _end(self, tokens: list[int], start: int) -> int:
        """`ends` of one text."""
        holds = lambda stop: any(x in self.decode(tokens[:stop]) for x in self.strings)
        if not holds(len(tokens)):
            return -1
        return next(n for n in range(start + 1, len(tokens) + 1) if holds(n))
