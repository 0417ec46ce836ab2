"""Problems from files: lines of JSON, in an order of their own for every seed and epoch."""

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

from springroll.atomic import JsonObject
from springroll.bounded import opened, parse_json
from springroll.errors import InputError
from springroll.memory import check_fits

Record: TypeAlias = JsonObject
T = TypeVar("T")


def read_records(path: Path, *fields: str) -> list[Record]:
    """The objects in a JSONL file, one a line; empty lines are skipped.

    Args:
        fields: that every object must have, as text.

    Raises:
        InputError: the file cannot be read or is empty, or a line is no object with these fields.
    """
    with opened(path) as file:
        check_fits(2 * os.fstat(file.fileno()).st_size, f"the text of {path}")
        content = file.read()
    try:
        lines = content.decode().split("\n")
    except ValueError:
        raise InputError(f"{path} is no text in UTF-8; expected JSON, one object a line") from None
    parsed = [
        _record(line, f"line {i} of {path}", fields) for i, line in enumerate(lines, 1) if line
    ]
    records = [record for record in parsed if record is not None]
    if not records:
        raise InputError(f"{path} holds no records; expected JSON, one object a line")
    return records


def _record(line: str, where: str, fields: Sequence[str]) -> Record | None:
    if not line.strip():
        return None
    record = parse_json(line, where)
    for field in fields:
        if not isinstance(record, dict) or not isinstance(record.get(field), str):
            raise InputError(f"{where} has no text under {field!r}")
    return record


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
