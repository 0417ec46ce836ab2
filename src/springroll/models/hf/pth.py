"""The tensors of a file that PyTorch saved, as views of the mapped file; no PyTorch, no code run.

Such a file is a zip archive: the numbers, uncompressed, one member per storage, and a pickle that
says which tensor is which part of which storage. A pickle is a program. This one may name what
rebuilds a dictionary of tensors and nothing else, in the few codes that takes, interpreted in
Python: the one in C allocates what a single code asks for. Nothing is unpacked, and no size is
believed before it was compared with the file's.
Source: torch/serialization.py, `torch.save`; docs.python.org, pickle, "Restricting Globals".
"""

import io
import math
import mmap
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

import ml_dtypes
import numpy as np

from springroll.bounded import opened
from springroll.errors import InputError

STORAGES: dict[str, type] = {
    "BFloat16Storage": ml_dtypes.bfloat16,
    "HalfStorage": np.float16,
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
}
_MAX_PICKLE = 4_000_000  # bytes; that of a model with 1,000 tensors has a twentieth
_MAX_DIRECTORY = 10_000_000  # bytes that say which members there are, about 100 for each
_MAX_AXES = 64  # of a NumPy array


class Storage(NamedTuple):
    """Numbers that tensors share: a member of the archive."""

    key: str
    dtype: type
    numbers: int

    @property
    def bytes(self) -> int:
        return self.numbers * np.dtype(self.dtype).itemsize


class Part(NamedTuple):
    """A tensor as the pickle describes it: in units of numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def inside(self) -> bool:
        """Whether it has no more numbers than its storage, and all of them are in there."""
        steps = zip(self.shape, self.stride, strict=True)
        last = self.offset + sum((n - 1) * step for n, step in steps)
        held = self.storage.numbers
        return (
            min(self.shape, default=1) > 0
            and max(last + 1, math.prod(self.shape), *self.stride) <= held
        )


def mapped_pth(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of the file by name: read-only arrays of no cost but address space.

    Raises:
        InputError: the file is missing, cut short, of PyTorch before 1.6, or its pickle names
            anything else than tensors; a member is compressed; a tensor has more numbers than are
            stored for it.
    """
    with opened(path) as file:
        members = _members(file, path)
        content = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    root = _root(members, path)
    order = f"{root}/byteorder"
    if order in members and _member(content, members, order, path)[:7].tobytes() != b"little":
        raise InputError(f"cannot read {path}: its numbers are not little-endian")
    parts = _parts(_member(content, members, f"{root}/data.pkl", path), path)
    keys = {part.storage.key for part in parts.values()}
    numbers = {key: _member(content, members, f"{root}/data/{key}", path) for key in keys}
    for name, part in parts.items():
        if part.storage.bytes > len(numbers[part.storage.key]):
            raise InputError(f"cannot read {path}: the numbers of {name} are cut short")
    return {name: _view(numbers[part.storage.key], part) for name, part in parts.items()}


# What torch.save writes, in any protocol of pickle.
_CODES = b"".join(
    (
        *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK),
        *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BINFLOAT),
        *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1),
        *(pickle.BINUNICODE, pickle.SHORT_BINUNICODE),
        *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
        *(pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS, pickle.EMPTY_DICT),
        *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.BINGET, pickle.LONG_BINGET),
        *(pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.REDUCE, pickle.BINPERSID),
    )
)


class _Tensors(pickle._Unpickler):
    """Builds dictionaries of `Part`s."""

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def find_class(self, module: str, name: str) -> object:
        if (module, name) == ("collections", "OrderedDict"):
            return _ordered
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _part
        if module == "torch" and name in STORAGES:
            return name
        raise pickle.UnpicklingError(f"it names {module}.{name}; only tensors are read")

    def persistent_load(self, pid: Any) -> Storage:
        kind, storage, key, _, count = pid
        texts = all(isinstance(text, str) for text in (kind, storage, key))
        if not texts or kind != "storage" or storage not in STORAGES:
            raise pickle.UnpicklingError("it refers to something else than numbers")
        return Storage(key, STORAGES[storage], _natural(count))

    def set_items(self, items: list[Any]) -> None:
        """Only text is a name: others may take for ever to hash."""
        target = self.stack[-1]
        for name, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(target, dict) or not isinstance(name, str) or name in target:
                raise pickle.UnpicklingError("expected a dictionary of tensors and nothing else")
            target[name] = value

    def load_setitem(self) -> None:
        value = self.stack.pop()
        self.set_items([self.stack.pop(), value])

    def load_setitems(self) -> None:
        self.set_items(self.pop_mark())

    def load_build(self) -> None:
        """What a dictionary has besides its items: the versions of modules."""
        self.stack.pop()

    dispatch: ClassVar[dict[int, Any]] = {
        **{code: pickle._Unpickler.dispatch[code] for code in _CODES},
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.BUILD[0]: load_build,
    }


def _ordered() -> OrderedDict[str, Any]:
    return OrderedDict()


def _part(storage: object, offset: object, shape: object, stride: object, *_: object) -> Part:
    if not (
        isinstance(storage, Storage) and isinstance(shape, tuple) and isinstance(stride, tuple)
    ):
        raise pickle.UnpicklingError("a tensor is described in another way than PyTorch does")
    if len(shape) != len(stride) or len(shape) > _MAX_AXES:
        raise pickle.UnpicklingError(f"a tensor has {len(shape)} axes and {len(stride)} strides")
    naturals = lambda values: tuple(map(_natural, values))
    return Part(storage, _natural(offset), naturals(shape), naturals(stride))


def _natural(value: object) -> int:
    if type(value) is not int or value < 0:
        raise pickle.UnpicklingError("a size is no whole number from 0")
    return value


def _parts(program: np.ndarray, path: Path) -> dict[str, Part]:
    """Tensor name -> where it lies, every one inside its storage."""
    if len(program) > _MAX_PICKLE:
        raise InputError(f"cannot read {path}: its list of tensors is larger than 4 MB")
    try:
        parts = _Tensors(io.BytesIO(program.tobytes())).load()
    except Exception as error:  # whatever a damaged pickle can raise
        reason = str(error) or type(error).__name__
        if isinstance(error, KeyError | IndexError):  # a code, or what it refers to
            reason = "its list of tensors is damaged, or written in another way than PyTorch does"
        raise InputError(f"cannot read {path}: {reason}") from None
    if not isinstance(parts, Mapping) or not all(isinstance(x, Part) for x in parts.values()):
        raise InputError(f"cannot read {path}: expected a dictionary of tensors and nothing else")
    for name, part in parts.items():
        if not part.inside:
            raise InputError(f"cannot read {path}: {name} reaches outside of its numbers")
    return dict(parts)


class _Limited:
    """A file for `zipfile`, which reads the list of members at once, as long as the file says."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if size > _MAX_DIRECTORY:
            raise zipfile.BadZipFile("the list of its members is larger than 10 MB")
        return self._file.read(size if size >= 0 else _MAX_DIRECTORY)


def _members(file: BinaryIO, path: Path) -> dict[str, zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(_Limited(file)) as archive:
            return {member.filename: member for member in archive.infolist()}
    except Exception:  # whatever a damaged archive can raise
        raise InputError(
            f"cannot read {path}: cut short, or not a file that torch.save wrote since PyTorch 1.6"
        ) from None


def _root(members: Mapping[str, object], path: Path) -> str:
    for name in members:
        if name.endswith("/data.pkl") and name.count("/") == 1:
            return name.split("/")[0]
    raise InputError(f"cannot read {path}: a zip file, but not one that torch.save wrote")


def _member(
    content: np.ndarray, members: Mapping[str, zipfile.ZipInfo], name: str, path: Path
) -> np.ndarray:
    """The bytes of a member, where they lie: behind a header of 30 bytes, name and extra."""
    if name not in members:
        raise InputError(f"cannot read {path}: it lacks {name}; download it again")
    member = members[name]
    at = member.header_offset
    header = content[at : at + 30].tobytes() if at >= 0 else b""
    lengths = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    start = at + 30 + sum(lengths)
    stored = member.compress_type == zipfile.ZIP_STORED and header.startswith(b"PK\x03\x04")
    if not stored or start + member.file_size > len(content):
        raise InputError(f"cannot read {path}: {name} is compressed or cut short")
    return content[start : start + member.file_size]


def _view(numbers: np.ndarray, part: Part) -> np.ndarray:
    dtype = np.dtype(part.storage.dtype)
    strides = tuple(step * dtype.itemsize for step in part.stride)
    return np.ndarray(part.shape, dtype, numbers, part.offset * dtype.itemsize, strides)
