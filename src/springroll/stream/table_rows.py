"""The rows of an embedding that a step reads: what of the table comes to the device.

A step of N tokens reads at most N rows of a table of V, so the table stays on the host. Its rows
are gathered there, and gradients are those of rows. They are taken some rows at a time, so that the
gradient of a step with more tokens than the table has rows is not on the device as a whole either.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from springroll.models.cross_entropy import slice_rows
from springroll.models.packed import read_tokens, with_read
from springroll.models.protocols import read_part
from springroll.trees import PyTree

LEAST = 1 << 24  # numbers of a table that is not worth it: 64 MiB of float32
TOGETHER = 1 << 26  # numbers of a gradient on the device: 256 MiB of float32


def by_rows(shape: tuple[int, ...]) -> bool:
    """Whether a table of this shape crosses as rows, unless the head reads it too."""
    return len(shape) == 2 and math.prod(shape) > LEAST


def rows_at_once(tokens: int, vocabulary: int, width: int, apart: bool = True) -> tuple[int, int]:
    """(times, rows each time) for the gradient of a table.

    Args:
        tokens: of a step.
        vocabulary, width: the table's shape.
        apart: whether rows may come at different times.
    """
    room = min(tokens, vocabulary)
    times = -(-room * width // TOGETHER) if apart else 1
    return times, -(-room // times)


def head_rows(shape: tuple[int, ...], tokens: int) -> int:
    """Rows of a slice of the gradient of a head of this shape, in micro-batches of so many tokens:
    those of which the loss is made, or fewer."""
    vocabulary, width = shape
    return min(slice_rows(vocabulary, tokens), rows_at_once(vocabulary, vocabulary, width)[1])


class TakenRows(NamedTuple):
    """Some rows of a table of this name and shape.

    start: how many rows stand before them in the array that holds them, of `held` rows.
    """

    table: str
    numbers: np.ndarray
    shape: tuple[int, ...]
    held: int
    start: int = 0


class TableRows:
    """Which rows the micro-batches of a step read, and the batches in terms of these.

    Args:
        batches: of tokens, on the host.
        vocabulary, width: the table's shape.
        apart: as of `rows_at_once`.

    Attributes:
        rows: ascending numbers of the rows that are read; times, size: as of `rows_at_once`.
    """

    def __init__(self, batches: Sequence[PyTree], vocabulary: int, width: int, apart: bool = True):
        self._batches = batches
        read = [np.asarray(read_tokens(read_part(batch))[0], np.int64) for batch in batches]
        within = [np.where(x < 0, x + vocabulary, x) for x in read]  # as `jnp.take` has it
        known = [(x >= 0) & (x < vocabulary) for x in within]
        self.rows = np.unique(np.concatenate([x[k] for x, k in zip(within, known, strict=True)]))
        self.times, self.size = rows_at_once(sum(x.size for x in read), vocabulary, width, apart)
        nowhere = np.int32(self.times * self.size)  # what is read there is NaN
        place = lambda x: np.searchsorted(self.rows, x).astype(np.int32)
        self._places = [np.where(k, place(x), nowhere) for x, k in zip(within, known, strict=True)]

    def batches(self, time: int | None = None) -> list[PyTree]:
        """The batches with the places of rows as tokens: among all rows, or among those of a time,
        where other rows have a place beyond the last."""
        if time is None:
            places = self._places
        else:
            begin = time * self.size
            inside = lambda x: (x >= begin) & (x < begin + self.size)
            local = lambda x: np.where(inside(x), x - begin, np.int32(self.size))
            places = [local(x) for x in self._places]
        return [with_read(b, x) for b, x in zip(self._batches, places, strict=True)]

    def of(self, time: int) -> np.ndarray:
        """Numbers of the rows of a time, at most `size`."""
        return self.rows[time * self.size : (time + 1) * self.size]

    def gathered(self, table: np.ndarray, time: int | None = None) -> np.ndarray:
        """These rows of the table, or all, and zeros: the same shape in every step."""
        rows = self.rows if time is None else self.of(time)
        out = np.zeros(
            (self.size * (self.times if time is None else 1), *table.shape[1:]), table.dtype
        )
        np.take(table, rows, axis=0, out=out[: len(rows)], mode="clip")
        return out
