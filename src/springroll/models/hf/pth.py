"""The tensors of a file that PyTorch saved, as views of the mapped file; no PyTorch, no code run.

Such a file is a zip archive: the numbers, uncompressed, one member per storage, and a pickle that
says which tensor is which part of which storage. A pickle is a program. This one may name what
rebuilds a dictionary of tensors and nothing else.
Source: torch/serialization.py, `torch.save`; docs.python.org, pickle, "Restricting Globals".
"""

import io
import mmap
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from springroll.errors import InputError

STORAGES: dict[str, type] = {
    "BFloat16Storage": ml_dtypes.bfloat16,
    "HalfStorage": np.float16,
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
}
_MAX_PICKLE = 100_000_000  # bytes; that of a model with 100,000 tensors has a fifth


class Part(NamedTuple):
    """A tensor as the pickle describes it: in units of numbers."""

    storage: str
    dtype: type
    numbers: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Of the whole storage."""
        return self.numbers * np.dtype(self.dtype).itemsize


def mapped_pth(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of the file by name: read-only arrays of no cost but address space.

    Raises:
        InputError: the file is missing, cut short, of PyTorch before 1.6, or its pickle names
            anything else than tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            parts = _parts(archive, path)
            members = {part.storage: _member(archive, part, path) for part in parts.values()}
        with open(path, "rb") as file:
            content = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except zipfile.BadZipFile:
        raise InputError(
            f"cannot read {path}: cut short, or not a file that torch.save wrote since PyTorch 1.6"
        ) from None
    starts = {storage: _start(content, member) for storage, member in members.items()}
    for part in parts.values():
        if starts[part.storage] + part.bytes > len(content):
            raise InputError(f"cannot read {path}: cut short; download it again")
    return {name: _view(content[starts[part.storage] :], part) for name, part in parts.items()}


class _Tensors(pickle.Unpickler):
    """Builds dictionaries of `Part`s."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _part
        if module == "torch" and name in STORAGES:
            return name
        raise pickle.UnpicklingError(f"it names {module}.{name}; only tensors are read")

    def persistent_load(self, pid: Any) -> tuple[str, type, int]:
        kind, storage, key, _, count = pid
        if kind != "storage" or storage not in STORAGES:
            raise pickle.UnpicklingError("it refers to something else than numbers")
        return str(key), STORAGES[storage], int(count)


def _part(
    storage: tuple[str, type, int],
    offset: int,
    shape: Sequence[int],
    stride: Sequence[int],
    *_: object,
) -> Part:
    key, dtype, count = storage
    numbers = lambda values: tuple(int(n) for n in values)
    return Part(key, dtype, count, int(offset), numbers(shape), numbers(stride))


def _parts(archive: zipfile.ZipFile, path: Path) -> dict[str, Part]:
    """Tensor name -> where it lies, every one inside its storage."""
    root = _root(archive, path)
    if f"{root}/byteorder" in archive.namelist() and archive.read(f"{root}/byteorder") != b"little":
        raise InputError(f"cannot read {path}: its numbers are not little-endian")
    if archive.getinfo(f"{root}/data.pkl").file_size > _MAX_PICKLE:
        raise InputError(f"cannot read {path}: its list of tensors is larger than 100 MB")
    try:
        parts = _Tensors(io.BytesIO(archive.read(f"{root}/data.pkl"))).load()
    except Exception as error:  # whatever a damaged pickle can raise
        raise InputError(f"cannot read {path}: {error}") from None
    if not isinstance(parts, Mapping) or not all(isinstance(x, Part) for x in parts.values()):
        raise InputError(f"cannot read {path}: expected a dictionary of tensors and nothing else")
    for name, part in parts.items():
        last = part.offset + sum(
            (n - 1) * step for n, step in zip(part.shape, part.stride, strict=True)
        )
        if (
            min(part.offset, *part.stride, *(n - 1 for n in part.shape), 0) < 0
            or last >= part.numbers
        ):
            raise InputError(f"cannot read {path}: {name} reaches outside of its numbers")
    return dict(parts)


def _root(archive: zipfile.ZipFile, path: Path) -> str:
    for name in archive.namelist():
        if name.endswith("/data.pkl") and name.count("/") == 1:
            return name.split("/")[0]
    raise InputError(f"cannot read {path}: a zip file, but not one that torch.save wrote")


def _member(archive: zipfile.ZipFile, part: Part, path: Path) -> zipfile.ZipInfo:
    name = f"{_root(archive, path)}/data/{part.storage}"
    try:
        member = archive.getinfo(name)
    except KeyError:
        raise InputError(f"cannot read {path}: it lacks {name}; download it again") from None
    if member.compress_type != zipfile.ZIP_STORED or member.file_size < part.bytes:
        raise InputError(f"cannot read {path}: {name} is compressed or cut short")
    return member


def _start(content: np.ndarray, member: zipfile.ZipInfo) -> int:
    """Where the bytes of a member begin: behind its own header of 30 bytes, name and extra."""
    header = content[member.header_offset :][:30].tobytes()
    lengths = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    return member.header_offset + 30 + sum(lengths)


def _view(numbers: np.ndarray, part: Part) -> np.ndarray:
    size = np.dtype(part.dtype).itemsize
    strides = tuple(step * size for step in part.stride)
    return np.ndarray(part.shape, part.dtype, numbers, part.offset * size, strides)
