"""Random problems by number: every draw is a function of (seed, side, index), on any machine.

Which side a problem is on follows from a hash of the problem itself, not from the seed or the index
it was drawn at: whatever is drawn for training under any seed is never held out under another.
"""

import hashlib
from collections.abc import Callable
from typing import TypeVar

from springroll.errors import InputError

ONE_IN = 8  # problems is held out
ATTEMPTS = 10_000
_ENOUGH = 2**64  # what is left of a hash must be much larger than any range drawn from


class Draws:
    """Whole numbers from a key: the digits, in changing bases, of the key's hash.

    A draw from n numbers is off uniform by at most n / 2^64.

    >>> draws = Draws("example", 0)
    >>> [draws.below(10) for _ in range(8)]
    [1, 6, 6, 3, 1, 6, 7, 8]
    """

    def __init__(self, *key: object) -> None:
        self._key = repr(key).encode()
        self._left = 0

    def below(self, n: int) -> int:
        """Uniform in 0 .. n - 1."""
        if self._left < _ENOUGH:
            self._key = hashlib.sha512(self._key).digest()
            self._left = int.from_bytes(self._key, "big")
        self._left, drawn = divmod(self._left, n)
        return drawn


T = TypeVar("T")


def is_held_out(key: str) -> bool:
    """The side of a problem: one in `ONE_IN` keys is held out."""
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()[0] % ONE_IN == 0


def draw(make: Callable[[Draws], tuple[str, T] | None], seed: int, held_out: bool, index: int) -> T:
    """The problem of an index on one side: the first that is drawn there.

    Args:
        make: gives (key, problem), or None where the draw makes no problem. Problems that are the
            same in substance (12+34 and 34+12) must have the same key.

    Raises:
        InputError: no problem of this side in `ATTEMPTS` draws.
    """
    for attempt in range(ATTEMPTS):
        problem = make(Draws(int(seed), bool(held_out), int(index), attempt))
        if problem is not None and is_held_out(problem[0]) == held_out:
            return problem[1]
    raise InputError(
        f"found no {'held-out' if held_out else 'training'} problem in {ATTEMPTS:,} draws; the "
        "options allow too few problems: take larger numbers or more operations"
    )
