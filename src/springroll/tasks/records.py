"""Problems from files, in an order of their own for every seed and epoch."""

import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from springroll.errors import InputError
from springroll.tasks.tables import Record, Row, read_table

T = TypeVar("T")


def read_records(path: Path, *fields: str) -> list[Record]:
    """The records of a file (see `read_table`).

    Args:
        fields: that every record must have, as text.

    Raises:
        InputError: the file cannot be read or is empty, or a record lacks one of these fields.
    """
    return records_with(read_table(path), *fields)


def records_with(rows: Sequence[Row], *fields: str) -> list[Record]:
    """The records of rows that have these fields as text.

    Raises:
        InputError: a record lacks one.
    """
    for where, record in rows:
        for field in fields:
            if not isinstance(record.get(field), str):
                raise InputError(f"{where} has no text under {field!r}")
    return [record for _, record in rows]


def file_digest(path: Path) -> str:
    """16 hex digits of the content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def shuffled(items: Sequence[T], seed: int) -> Callable[[int], T]:
    """The item of an index, 0 or more: all of them once, then all again in another order."""

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> list[int]:
        key = lambda i: hashlib.sha256(f"{seed}/{epoch}/{i}".encode()).digest()
        return sorted(range(len(items)), key=key)

    def at(index: int) -> T:
        epoch, place = divmod(int(index), len(items))
        return items[order(epoch)[place]]

    return at
