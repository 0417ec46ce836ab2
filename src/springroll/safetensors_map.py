"""The tensors of a safetensors file as views of the mapped file: nothing is read until it is used.

A file is an eight-byte length, a JSON header of that length {name: {dtype, shape, data_offsets}},
and the numbers, row by row. Source: https://github.com/huggingface/safetensors, "Format".
"""

import json
import math
import mmap
import os
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from springroll.atomic import JsonObject
from springroll.errors import InputError

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
_LENGTH = 8
_MAX_HEADER = 100_000_000  # bytes, as in the format's own library


def mapped(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of the file by name: read-only arrays of no cost but address space.

    Raises:
        InputError: the file is missing, cut short, longer than its header says, or no safetensors
            file. Found from the header and the size of the file alone.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            header, start = _header(file, path, size)
            content = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    return {name: _view(content[start:], entry) for name, entry in header.items()}


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


def _header(file: BinaryIO, path: Path, size: int) -> tuple[JsonObject, int]:
    """(the header without its metadata, where the numbers begin), all of it checked."""
    length = int.from_bytes(file.read(_LENGTH), "little")
    if size < _LENGTH or length > min(size - _LENGTH, _MAX_HEADER):
        raise InputError(f"cannot read {path}: no safetensors file, or cut short ({size} bytes)")
    try:
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        ends = [_checked(name, entry) for name, entry in header.items()]
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise InputError(f"cannot read {path}: damaged header ({error})") from None
    expected = _LENGTH + length + max(ends, default=0)
    if size != expected:
        raise InputError(
            f"cannot read {path}: it has {size} bytes and its header says {expected}; "
            "download it again"
        )
    return header, _LENGTH + length


def _checked(name: str, entry: JsonObject) -> int:
    """Where the tensor ends; ValueError if its place does not fit its shape."""
    begin, end = entry["data_offsets"]
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{name} has the unknown dtype {entry['dtype']}")
    count = math.prod(entry["shape"]) * np.dtype(DTYPES[entry["dtype"]]).itemsize
    if begin < 0 or end - begin != count:
        raise ValueError(f"{name} has {end - begin} bytes where its shape needs {count}")
    return end


def _view(numbers: np.ndarray, entry: JsonObject) -> np.ndarray:
    begin, end = entry["data_offsets"]
    return numbers[begin:end].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
