"""Embedding, last norm and head on their way through a step: each is there while it is read.

The embedding comes before the layers, as the rows that the tokens of the step name, and goes when
the head comes, before the loss; the head goes with its gradient. While layers pass backwards
neither is on the device; then the embedding comes again for its gradient.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import NamedTuple

import jax
import numpy as np

from springroll.models.packed import learnt
from springroll.stream.conveyor import Conveyor, Passing
from springroll.stream.homes import Fields, writable
from springroll.stream.step_programs import Reads
from springroll.stream.store import HostStore
from springroll.stream.table_rows import TableRows, TakenRows, by_rows, head_rows
from springroll.trees import PyTree


class SlicedHead(NamedTuple):
    """A head of this name and shape whose gradient is made in slices of so many rows."""

    name: str
    shape: tuple[int, ...]
    size: int


class RestPassage:
    """The bundle of the rest during one walk.

    Args:
        conveyor: whose last bundle it is.
        batches: the micro-batches, on the host.
        reads: None where the bundle stays on the device.
        table, head: the entry of which `embed` reads one row per token, and that whose gradient can
            be made in slices, if they are known.
        fields: of a bundle that stays.
    """

    def __init__(
        self,
        conveyor: Conveyor[HostStore],
        batches: Sequence[PyTree],
        reads: Reads | None,
        table: str | None,
        head: str | None,
        fields: tuple[str, ...],
    ):
        self._conveyor, self._reads, self._fields = conveyor, reads, fields
        self._bundle = conveyor.store.bundles - 1
        self._table = table
        self.rows: TableRows | None = None
        self.tokens = self._sent(batches)
        self._passing: Passing | None = None
        self._coming: Passing | None = None  # the head, ahead of its use
        self.sliced: SlicedHead | None = None
        if reads is not None and head in reads.head - reads.embed:
            shape = conveyor.store.tree(self._bundle, "weights")[head].shape
            if by_rows(shape):
                self.sliced = SlicedHead(head, shape, head_rows(shape, learnt(batches[0])[0].size))
        if reads is not None and table is not None and table not in reads.head:
            shape = conveyor.store.tree(self._bundle, "weights")[table].shape
            if by_rows(shape):
                self.rows = TableRows(batches, *shape, apart=reads.embed == {table})
                self._shape = shape

    def embedding(self, time: int | None = None) -> tuple[Passing, list[PyTree]]:
        """What `embed` reads, and its batches; of a table only the rows of this time."""
        if self._reads is None:
            return self._held(self._fields), self.tokens
        tokens = self.tokens if self.rows is None else self._sent(self.rows.batches(time))
        return self._next(self._reads.embed, time), tokens

    @property
    def slices(self) -> list[TakenRows]:
        """Of a head whose gradient is made in slices: the rows that are new in each."""
        if self.sliced is None:
            return []
        (vocabulary, _), size = self.sliced.shape, self.sliced.size
        return [
            TakenRows(
                self.sliced.name,
                np.arange(begin, min(begin + size, vocabulary)),
                self.sliced.shape,
                size,
                max(0, begin + size - vocabulary),
            )
            for begin in range(0, vocabulary, size)
        ]

    @property
    def times(self) -> list[int | None]:
        """At which `embedding` is taken for its gradient."""
        return [None] if self.rows is None else [*range(self.rows.times)]

    def taken(self, time: int | None) -> TakenRows | None:
        """The rows that are there at such a time, where not all are."""
        if self.rows is None or time is None or self._table is None:
            return None
        return TakenRows(self._table, self.rows.of(time), self._shape, self.rows.size)

    def head_soon(self) -> None:
        """The head will be needed next."""
        if self._reads is not None:
            self._coming = self._next(self._reads.head)

    def head(self) -> Passing:
        """What the head reads."""
        if self._reads is None:
            return self._held(self._fields)
        coming, self._coming = self._coming, None
        return coming or self._next(self._reads.head)

    def leave(self) -> None:
        """Nothing of it is needed on the device."""
        if self._passing is not None:
            self._passing.leave()

    def _held(self, fields: tuple[str, ...]) -> Passing:
        self._passing = self._passing or self._conveyor.hold(self._bundle, fields)
        return self._passing

    def _next(self, names: frozenset[str], time: int | None = None) -> Passing:
        """These entries in place of those that were there."""
        self.leave()
        if not names:
            nothing: Future[Fields] = Future()
            nothing.set_result({"weights": {}})
            return Passing(self._bundle, nothing, None)

        def chosen(fields: Fields) -> Fields:
            weights = {name: x for name, x in fields["weights"].items() if name in names}
            if self.rows is not None and self._table in weights:
                table = writable(weights[self._table])
                weights[self._table] = self.rows.gathered(table, time)
            return {"weights": weights}

        self._passing = self._conveyor.hold(self._bundle, ("weights",), chosen)
        return self._passing

    def _sent(self, batches: Sequence[PyTree]) -> list[PyTree]:
        batches = list(batches)
        return jax.device_put(batches, self._conveyor.link.replicas.rows(batches))
