"""Which pairs each process evaluates. Imports no JAX."""

from typing import NamedTuple

from springroll.errors import InputError


class Span(NamedTuple):
    """Consecutive pairs of a population that are evaluated by one call."""

    first: int
    pairs: int

    def members(self, signs: int) -> slice:
        """Those of its pairs, with `signs` members each."""
        return slice(signs * self.first, signs * (self.first + self.pairs))


def spans_of(pairs: int, processes: int, block: int | None, unit: int = 1) -> list[list[Span]]:
    """The spans of every process, in the order of the pairs.

    >>> spans_of(10, 3, None)
    [[Span(first=0, pairs=3)], [Span(first=3, pairs=3)], [Span(first=6, pairs=4)]]
    >>> spans_of(6, 2, 2)
    [[Span(first=0, pairs=2)], [Span(first=2, pairs=2), Span(first=4, pairs=2)]]

    Args:
        pairs: of the population.
        processes: that share them.
        block: pairs of every span; None: each process has one span.
        unit: a number of pairs that spans without `block` are multiples of.

    Raises:
        InputError: they do not divide into blocks, or there are fewer of them than processes.
    """
    if block is not None and pairs % block:
        least = next(b for b in range(block, 0, -1) if pairs % b == 0)
        raise InputError(
            f"block is {block}; the {pairs:,} pairs do not divide into such blocks: give {least}"
        )
    size = block or (unit if pairs % unit == 0 else 1)
    count = pairs // size
    if count < processes:
        what = f"{count:,} blocks of {size:,} pairs" if size > 1 else f"{count:,} pairs"
        raise InputError(
            f"{processes} processes cannot share {what}: start {count} or fewer, or choose a "
            "larger pop_size"
        )
    shares = [range(count * i // processes, count * (i + 1) // processes) for i in range(processes)]
    if block is None:
        return [[Span(size * share.start, size * len(share))] for share in shares]
    return [[Span(size * i, size) for i in share] for share in shares]


def usual_block(pairs: int, processes: int) -> int:
    """Pairs of a block where the user names none: one block for each process where that comes out
    even, else as many blocks as let shares differ by a quarter at most.

    >>> usual_block(64, 4), usual_block(32, 3), usual_block(7, 2)
    (16, 2, 1)
    """
    if pairs % processes == 0:
        return pairs // processes
    most = max(1, pairs // (4 * processes))
    return next(size for size in range(most, 0, -1) if pairs % size == 0)
