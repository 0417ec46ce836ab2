"""The tensors of a safetensors file as views of the mapped file: nothing is read until it is used.

A file is an eight-byte length, a JSON header of that length {name: {dtype, shape, data_offsets}},
and the numbers, row by row, one tensor behind the other. Models and checkpoints are read by this
one reader, which believes no size before it has compared it with the file's.
Source: https://github.com/huggingface/safetensors, "Format".
"""

import math
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeGuard

import ml_dtypes
import numpy as np

from springroll.bounded import JSON_BYTES, opened, parse_json
from springroll.errors import InputError, brief

DTYPES: dict[str, type] = {
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
    "U8": np.uint8,
    "U16": np.uint16,
    "U32": np.uint32,
    "U64": np.uint64,
    "BOOL": np.bool_,
}
_SIZES = {name: np.dtype(kind).itemsize for name, kind in DTYPES.items()}
_LENGTH = 8
_MAX_AXES = 64  # of a NumPy array


class Entry(NamedTuple):
    """One tensor of a file: what it is, and where in the file its numbers are."""

    dtype: str  # one of DTYPES
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """What a file holds."""

    entries: dict[str, Entry]
    metadata: dict[str, str]


def mapped(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of the file by name: read-only arrays of no cost but address space.

    Raises:
        InputError: the file is missing, or as `read_header`.
    """
    with opened(path) as file:
        header = read_header(file, path)
        content = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    return {name: _view(content, entry) for name, entry in header.entries.items()}


def read_header(file: BinaryIO, path: Path) -> Header:
    """What the file says it holds, checked from that and the file's size alone.

    Args:
        file: at its beginning.
        path: for messages.

    Raises:
        InputError: the file is cut short, longer than its header says, or no safetensors file; its
            tensors overlap or leave a gap, one has a shape or dtype that no array has.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(_LENGTH), "little")
    if size < _LENGTH or length > min(size - _LENGTH, JSON_BYTES):
        raise InputError(f"cannot read {path}: no safetensors file, or cut short ({size} bytes)")
    start = _LENGTH + length
    try:
        listed = parse_json(file.read(length), "it", distinct=True)
        if not isinstance(listed, dict):
            raise ValueError("it is no JSON object")
        metadata = _metadata(listed.pop("__metadata__", {}))
        entries = {name: _entry(name, about, start) for name, about in listed.items()}
        end = _end_of_row(entries, start)
    except ValueError as error:  # an InputError is one
        raise InputError(f"cannot read {path}: damaged header ({error})") from None
    if size != end:
        raise InputError(
            f"cannot read {path}: it has {size} bytes and its header says {end}; download it again"
        )
    return Header(entries, metadata)


def forget(tensor: np.ndarray) -> None:
    """Give the memory that holds these pages of the file back; they are read again when used.

    Of use after a tensor was copied: the memory of the process is then that of the copies alone.
    Does nothing for other arrays, and where the system knows no such advice.
    """
    base: Any = tensor
    while isinstance(base, np.ndarray):
        base = base.base
    file = base.obj if isinstance(base, memoryview) else base
    if not isinstance(file, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return
    begin = tensor.ctypes.data - np.frombuffer(file, np.uint8).ctypes.data
    page = begin // mmap.PAGESIZE * mmap.PAGESIZE
    file.madvise(mmap.MADV_DONTNEED, page, begin + tensor.nbytes - page)


def _metadata(about: object) -> dict[str, str]:
    if not isinstance(about, dict) or not all(isinstance(text, str) for text in about.values()):
        raise ValueError("its __metadata__ is no object of texts")
    return about


def _entry(name: str, about: object, start: int) -> Entry:
    """ValueError if it describes no array, or its place does not fit its shape."""
    if not isinstance(about, dict):
        raise ValueError(f"{name} is {brief(about)}; expected dtype, shape and data_offsets")
    dtype, shape, place = about.get("dtype"), about.get("shape"), about.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{name} has the unknown dtype {dtype if dtype else None}")
    if not _naturals(shape) or len(shape) > _MAX_AXES:
        raise ValueError(f"{name} has the shape {brief(shape)}, which no array has")
    if not _naturals(place) or len(place) != 2:
        raise ValueError(f"{name} has the place {brief(place)}; expected its begin and end")
    itemsize = _SIZES[dtype]
    needed = itemsize * math.prod(shape)
    whole = needed or itemsize * math.prod(n or 1 for n in shape)  # NumPy counts axes of 0 so
    if whole >= 2**63:
        raise ValueError(f"{name} has the shape {brief(shape)}, which no array has")
    begin, end = place
    if end - begin != needed:
        raise ValueError(f"{name} has {end - begin} bytes where its shape needs {needed}")
    return Entry(dtype, tuple(shape), start + begin, start + end)


def _naturals(values: object) -> TypeGuard[list[int]]:
    if not isinstance(values, list):
        return False
    for n in values:  # noqa: SIM110  (`all` takes twice as long, of 100,000 tensors)
        if type(n) is not int or n < 0:
            return False
    return True


def _end_of_row(entries: Mapping[str, Entry], start: int) -> int:
    """Where the last tensor ends; ValueError unless each begins where another ends."""
    place = start
    for begin, end, name in sorted((e.begin, e.end, name) for name, e in entries.items()):
        if begin != place:
            what = "overlaps another" if begin < place else "leaves a gap before it"
            raise ValueError(f"{name} {what}: it begins at byte {begin}, not at {place}")
        place = end
    return place


def _view(content: np.ndarray, entry: Entry) -> np.ndarray:
    return content[entry.begin : entry.end].view(DTYPES[entry.dtype]).reshape(entry.shape)
