"""What a GGUF file says it holds: metadata and where its tensors lie; no number is read.

A file is `GGUF`, a version, two counts, so many keys with typed values, so many tensors (name,
axes, type, offset), and the numbers. The reader of the package `gguf` makes several arrays for
every value, and believes counts; this one believes no size before it has compared it with the
file's, and leaves arrays where they are until somebody asks for them.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import importlib
import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from springroll.bounded import opened
from springroll.errors import InputError, as_path, brief
from springroll.program import pip_install

MAGIC = b"GGUF"
_NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRUCTS = {code: struct.Struct(f"<{code}") for code in _NUMBERS.values()}
_TEXT, _ARRAY = 8, 9  # the other types of values
_MAX_KEYS = 10_000  # usual files have 40
_MAX_TENSORS = 100_000  # of the largest model 2,000
_MAX_ITEMS = 4_000_000  # of an array; the largest vocabulary has a tenth
_MAX_TEXT = 16_000_000  # bytes of one text; a chat template has 10,000
_MAX_AXES = 4


class Entry(NamedTuple):
    """One tensor: its type, what shape it has in NumPy's order, and where in the file it lies."""

    kind: int  # of the package's GGMLQuantizationType
    shape: tuple[int, ...]
    begin: int
    end: int


class Items(NamedTuple):
    """An array among the metadata, not yet read."""

    kind: int
    length: int
    begin: int


@dataclass(frozen=True)
class Header:
    """What a file holds, checked from that and the file's size alone."""

    path: Path
    content: np.ndarray  # the mapped file, uint8
    metadata: Mapping[str, Any]  # numbers, texts, and arrays as Items
    tensors: Mapping[str, Entry]

    def items(self, key: str) -> list[Any] | None:
        """The values of an array; None where the key is missing."""
        found = self.metadata.get(key)
        if found is None:
            return None
        if not isinstance(found, Items):
            raise InputError(f"cannot read {self.path}: {key} is {brief(found)}; expected an array")
        cursor = _Cursor(self.content, self.path, found.begin)
        if found.kind == _TEXT:
            return [cursor.text() for _ in range(found.length)]
        code = np.dtype("<" + _NUMBERS[found.kind])
        return np.frombuffer(cursor.take(code.itemsize * found.length), code).tolist()


def read_header(path: str | Path) -> Header:
    """Read what a file says.

    Raises:
        InputError: the package `gguf` is missing; the file is missing, cut short, damaged, of
            another format, version or byte order; tensors overlap, or reach outside of it.
    """
    path = as_path(path, "the GGUF file")
    sizes = package(path).GGML_QUANT_SIZES
    with opened(path) as file:
        try:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise InputError(f"cannot read {path}: it is empty") from None
    content = np.frombuffer(mapping, np.uint8)
    cursor = _Cursor(content, path)
    if len(content) < 24 or cursor.take(4).tobytes() != MAGIC:
        raise InputError(f"cannot read {path}: it is no GGUF file")
    version = cursor.number("I")
    if version not in (2, 3):
        cursor.fail(f"its version is {version}; known are 2 and 3, in little-endian")
    tensors, keys = cursor.count(_MAX_TENSORS, "tensors"), cursor.count(_MAX_KEYS, "keys")
    metadata: dict[str, Any] = {}
    for _ in range(keys):
        key = cursor.text(65535)
        if key in metadata:
            cursor.fail(f"it has the key {brief(key)} twice")
        metadata[key] = cursor.value(cursor.number("I"), key)
    described = [_described(cursor, sizes) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20:
        cursor.fail(f"general.alignment is {brief(alignment)}")
    start = -(-cursor.place // alignment) * alignment
    entries: dict[str, Entry] = {}
    for name, kind, shape, offset, bytes_ in described:
        if name in entries:
            cursor.fail(f"it holds {brief(name)} twice")
        entries[name] = Entry(kind, shape, start + offset, start + offset + bytes_)
    _check_places(entries, len(content), cursor)
    return Header(path, content, metadata, entries)


def package(path: object) -> Any:
    """The package `gguf`, which knows the formats of numbers."""
    try:
        return importlib.import_module("gguf")
    except ImportError:
        raise InputError(f"{path} needs the package 'gguf': {pip_install('gguf')}") from None


class _Cursor:
    """A place in the file that moves on, never past its end."""

    def __init__(self, content: np.ndarray, path: Path, place: int = 0) -> None:
        self.content, self.path, self.place = content.data, path, place

    def fail(self, why: str) -> NoReturn:
        raise InputError(f"cannot read {self.path}: {why}")

    def take(self, size: int) -> memoryview:
        if size > len(self.content) - self.place:
            self.fail(f"it is cut short, or damaged ({len(self.content):,} bytes)")
        self.place += size
        return self.content[self.place - size : self.place]

    def number(self, code: str) -> Any:
        number = _STRUCTS[code]
        return number.unpack(self.take(number.size))[0]

    def count(self, most: int, what: str) -> int:
        count = self.number("Q")
        if count > most:
            self.fail(f"it says that it has {count:,} {what}; at most {most:,} are read")
        return count

    def text(self, most: int = _MAX_TEXT) -> str:
        size = self.count(most, "bytes in one text")
        try:
            return self.take(size).tobytes().decode()
        except UnicodeDecodeError:
            self.fail("a text in it is not UTF-8")

    def value(self, kind: int, key: str) -> Any:
        """A number, a text, or where an array lies."""
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _TEXT:
            return self.text()
        inner = self.number("I") if kind == _ARRAY else -1
        if inner not in _NUMBERS and inner != _TEXT:
            self.fail(f"the value of {brief(key)} is of an unknown type")
        count = self.count(_MAX_ITEMS, f"values in {brief(key)}")
        items = Items(inner, count, self.place)
        if inner == _TEXT:
            for _ in range(count):
                self.take(self.count(_MAX_TEXT, "bytes in one text"))
        else:
            self.take(count * _STRUCTS[_NUMBERS[inner]].size)
        return items


def _described(
    cursor: _Cursor, sizes: Mapping[Any, tuple[int, int]]
) -> tuple[str, int, tuple[int, ...], int, int]:
    """(name, type, shape, offset, bytes) of the tensor whose description comes next."""
    name = cursor.text(65535)
    axes = cursor.number("I")
    if not 1 <= axes <= _MAX_AXES:
        cursor.fail(f"{brief(name)} has {axes} axes; expected 1 to {_MAX_AXES}")
    shape = tuple(cursor.number("Q") for _ in range(axes))[::-1]  # the file has the last first
    kind, offset = cursor.number("I"), cursor.number("Q")
    if kind not in sizes:
        cursor.fail(f"{brief(name)} is of type {kind}, which the package gguf does not know")
    per_block, bytes_per_block = sizes[kind]
    if min(shape) < 1 or math.prod(shape) >= 2**62 or shape[-1] % per_block:
        cursor.fail(f"{brief(name)} has the shape {list(shape)}, which its type cannot have")
    return name, kind, shape, offset, math.prod(shape) // per_block * bytes_per_block


def _check_places(entries: Mapping[str, Entry], size: int, cursor: _Cursor) -> None:
    """Raise InputError unless all tensors lie in the file, each in a place of its own."""
    last = 0
    for begin, end, name in sorted((e.begin, e.end, name) for name, e in entries.items()):
        if begin < last:
            cursor.fail(f"{brief(name)} overlaps another tensor")
        if end > size:
            cursor.fail(f"{brief(name)} ends at byte {end:,} and the file at {size:,}: cut short")
        last = end
