"""Records from files: JSON, JSON lines, CSV and parquet, told apart by the end of the name."""

import csv
import importlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from springroll.atomic import JsonObject
from springroll.bounded import opened, parse_json
from springroll.errors import InputError, brief, first_line, kind_of
from springroll.memory import check_fits
from springroll.program import pip_install

Record: TypeAlias = JsonObject

LOOK = 32 << 20  # characters of rows between two looks at the memory that is left
LEFT = 256 << 20  # bytes of it that rows are not to take
BATCH = 64  # rows of parquet at a time: a small file may hold one long text a million times
PACKED = {  # what a file of this kind begins with
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    **{b"BZh%d1AY&SY" % size: "bzip2" for size in range(1, 10)},
}
SHAPES = 'a list of objects, {"data": [...]}, or columns of one length'


class Row(NamedTuple):
    """A record, and where it stands."""

    where: str  # "line 3 of data.jsonl"
    record: Record


def read_table(path: Path) -> list[Row]:
    """The records of a file; one whose name ends in none of `READERS` is read as JSON lines.

    Values of a CSV file are text. Dates and decimals of a parquet file become text, and bytes None.

    Raises:
        InputError: the file cannot be read, holds no records or something else; the package
            `pyarrow` for parquet is missing.
    """
    rows = list(READERS.get(path.suffix.lower(), _unnamed)(path))
    if not rows:
        raise InputError(f"{path} holds no records")
    return rows


def plain_rows(rows: Iterable[Mapping[str, Any]], source: str) -> Iterator[Row]:
    """Rows of a library as records of what JSON can say, as long as memory is left for them."""
    size = 0
    for number, row in enumerate(rows, 1):
        text = json.dumps(dict(row), default=_said)
        size += len(text)
        if size > LOOK:
            check_fits(LEFT, f"what follows row {number} of {source}")
            size = 0
        yield Row(f"row {number} of {source}", json.loads(text))


def _said(value: object) -> object:
    """What JSON has no words for; arrays as lists, bytes (of pictures) as nothing."""
    if isinstance(value, bytes | bytearray | memoryview):
        return None
    listed: Any = getattr(value, "tolist", None)
    return listed() if callable(listed) else str(value)


def _text(path: Path) -> str:
    with opened(path) as file:
        check_fits(2 * os.fstat(file.fileno()).st_size, f"the text of {path}")
        content = file.read()
    refuse_packed(content, path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"line {line} of {path} is no text in UTF-8; expected JSON or CSV, or a name that ends "
            "in .parquet"
        ) from None


def refuse_packed(content: bytes, path: Path) -> None:
    """Raise InputError of a file that has to be unpacked before it can be read."""
    kind = packed(content)
    if kind:
        raise InputError(f"{path} is packed by {kind}; unpack it, and give the file that it holds")


def packed(content: bytes) -> str | None:
    """What packed a file, by its first bytes."""
    return next((kind for start, kind in PACKED.items() if content.startswith(start)), None)


def _json_lines(path: Path) -> Iterator[Row]:
    return _lines(_text(path), path)


def _unnamed(path: Path) -> Iterator[Row]:
    """JSON lines by another name, which is told where the file is something else."""
    text = _text(path)
    try:
        yield from _lines(text, path)
    except InputError as error:
        raise InputError(
            f"{error}; a file is read as JSON lines unless its name ends in {', '.join(READERS)}"
        ) from None


def _lines(text: str, path: Path) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"line {number} of {path}"
            yield Row(where, _object(parse_json(line, where), where))


def _json(path: Path) -> Iterator[Row]:
    """One value; files of JSON lines have this name too."""
    text = _text(path)
    first, _, more = text.strip().partition("\n")
    if more and _is_object(first):
        return _lines(text, path)
    return _numbered(_records(parse_json(text, str(path)), path), path)


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _records(value: object, path: Path) -> Sequence[object]:
    """The records of a JSON value in one of `SHAPES`."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        raise InputError(f"{path} holds {brief(value)}; expected {SHAPES}")
    named: Any = value["data"] if "data" in value else next(iter(value.values()), None)
    listed = isinstance(named, list) and ("data" in value or len(value) == 1)
    if listed and all(isinstance(each, dict) for each in named):
        return named
    columns = [column for column in value.values() if isinstance(column, list)]
    lengths = {len(column) for column in columns}
    if len(columns) < len(value) or len(lengths) != 1:
        raise InputError(f"{path} holds an object of {', '.join(value)}; expected {SHAPES}")
    return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]


def _numbered(values: Iterable[object], path: Path) -> Iterator[Row]:
    for number, value in enumerate(values, 1):
        where = f"record {number} of {path}"
        yield Row(where, _object(value, where))


def _object(value: object, where: str) -> Record:
    if not isinstance(value, dict):
        raise InputError(f"{where} is {kind_of(value)}; expected an object with named fields")
    return value


def _csv(path: Path, delimiter: str = ",") -> Iterator[Row]:
    text = _text(path)
    usual = csv.field_size_limit(len(text) + 1)  # it is in memory already
    try:
        header, *lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    except csv.Error as error:
        raise InputError(f"cannot read {path}: {error}") from None
    except ValueError:  # not even a header
        return
    finally:
        csv.field_size_limit(usual)
    if len({*header}) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise InputError(f"{path} has two columns {twice!r}; expected distinct names in line 1")
    for number, line in enumerate(filter(None, lines), 1):
        where = f"record {number} of {path}"
        if len(line) != len(header):
            raise InputError(f"{where} has {len(line)} fields; expected {len(header)} as in line 1")
        yield Row(where, dict(zip(header, line, strict=True)))


def _parquet(path: Path) -> Iterator[Row]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise InputError(f"{path} needs the package 'pyarrow': {pip_install('data')}") from None
    with opened(path) as file:
        try:
            table = parquet.ParquetFile(file)
            groups = (table.metadata.row_group(i) for i in range(table.metadata.num_row_groups))
            size = sum(group.total_byte_size for group in groups)
            check_fits(size + 100 * table.metadata.num_rows, f"the records of {path}")
            batches = table.iter_batches(batch_size=BATCH)
            yield from plain_rows(
                (row for batch in batches for row in batch.to_pylist()), str(path)
            )
        except InputError:
            raise
        except Exception as error:  # the package raises many kinds over a damaged file
            raise InputError(f"cannot read {path}: {first_line(error, 160)}") from None


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": lambda path: _csv(path, "\t"),
    ".parquet": _parquet,
}
