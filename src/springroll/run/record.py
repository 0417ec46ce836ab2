"""One record of the journal, a generation, as bytes. Imports no jax.

Layout, little-endian:

    record  = head | u32 shape[ndim] | payload | u32 crc32 of all before it in the record
    head    = "SRGR" | u64 generation | u64 seed | u32 payload bytes | 8 bytes dtype | u8 ndim
    payload = zlib of the fitness array's raw bytes
"""

import math
import struct
import zlib
from typing import NamedTuple

import numpy as np

from springroll.errors import brief

MARK = b"SRGR"
HEAD = struct.Struct("<4sQQI8sB")
WORD = struct.Struct("<I")
_DTYPES = {
    kind.newbyteorder("<").str.encode(): kind.newbyteorder("<")
    for kind in map(np.dtype, np.typecodes["AllInteger"] + np.typecodes["Float"] + "?")
}
_MAX_AXES = 64  # of a NumPy array
_MAX_RATIO = 1040  # zlib packs no better


class Record(NamedTuple):
    """One generation of the journal."""

    generation: int
    seed: int
    fitness: np.ndarray  # as the loop saw it, usually (pop_size,) float32 or int32


class Kind(NamedTuple):
    """What all records of a journal have in common."""

    seed: int
    dtype: str  # NumPy's name
    members: int  # the first dimension of every fitness

    def __str__(self) -> str:
        return f"seed {self.seed}, {self.members} x {self.dtype}"


def encode(record: Record) -> bytes:
    """The bytes of one record."""
    fitness = np.asarray(record.fitness)
    dtype = fitness.dtype.newbyteorder("<").str.encode()
    if fitness.dtype.kind not in "biuf" or len(dtype) > 8:
        raise TypeError(f"a fitness of dtype {fitness.dtype} cannot be journalled")
    # Level 1: scores barely compress, so more effort buys bytes at ten times the time.
    payload = zlib.compress(fitness.astype(fitness.dtype.newbyteorder("<")).tobytes(), 1)
    head = HEAD.pack(MARK, record.generation, record.seed, len(payload), dtype, fitness.ndim)
    body = head + struct.pack(f"<{fitness.ndim}I", *fitness.shape) + payload
    return body + WORD.pack(zlib.crc32(body))


def decode(content: bytes) -> Record:
    """The inverse of `encode`, for bytes whose checksum is known to hold.

    Raises:
        ValueError: they are no record all the same. No more is unpacked than the shape says, and
            that is at most what zlib can have packed.
    """
    _, generation, seed, length, name, ndim = HEAD.unpack_from(content)
    shape = struct.unpack_from(f"<{ndim}I", content, HEAD.size)
    dtype = _DTYPES.get(name.rstrip(b"\0"))
    size = math.prod(shape) * (dtype.itemsize if dtype else 1)
    if dtype is None or ndim > _MAX_AXES or size > _MAX_RATIO * length:
        raise ValueError("its dtype or shape is none of a fitness")
    try:
        unpack = zlib.decompressobj()
        raw = unpack.decompress(content[HEAD.size + 4 * ndim : -WORD.size], size + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(raw) != size or not unpack.eof or unpack.unused_data:
        raise ValueError("its payload has another size than its shape")
    return Record(generation, seed, np.frombuffer(raw, dtype).reshape(shape))


def described(content: bytes) -> tuple[int, Kind]:
    """The generation and the kind of a record whose checksum holds."""
    _, generation, seed, _, name, ndim = HEAD.unpack_from(content)
    members = WORD.unpack_from(content, HEAD.size)[0] if ndim else 1
    dtype = _DTYPES.get(name.rstrip(b"\0"))  # what is none is refused when the record is read
    return generation, Kind(seed, str(dtype or brief(name)), members)


def size_said(head: bytes) -> int | None:
    """Bytes of the record that begins with these; None where none does."""
    if len(head) < HEAD.size or head[:4] != MARK:
        return None
    _, _, _, length, _, ndim = HEAD.unpack(head)
    return HEAD.size + 4 * ndim + length + WORD.size


def is_whole(content: bytes) -> bool:
    """Whether the checksum of a record holds."""
    return zlib.crc32(content[: -WORD.size]) == WORD.unpack(content[-WORD.size :])[0]
