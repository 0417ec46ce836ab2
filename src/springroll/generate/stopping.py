"""Strings that end a text, wherever tokens cut them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from springroll.errors import InputError

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
        if "" in self.strings:
            raise InputError("a stop string is empty; every text would end before it begins")

    def end(self, tokens: np.ndarray, start: int) -> int | None:
        """The first number of `tokens` above `start` whose text holds a stop string.

        `tokens` (n,) are those of a text so far; no stop string is in the first `start` of them.
        None: there is none in all of them either.
        """
        longest = max((len(text.encode(errors="replace")) for text in self.strings), default=0)
        first = max(0, start - longest - MARGIN)
        holds = lambda stop: any(
            x in self.decode(tokens[first:stop].tolist()) for x in self.strings
        )
        if not holds(len(tokens)):
            return None
        return next(n for n in range(start + 1, len(tokens) + 1) if holds(n))
