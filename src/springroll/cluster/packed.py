"""Arrays as bytes and back, in little more than their own size. Imports no JAX."""

import json
import struct
from collections.abc import Sequence

import ml_dtypes  # noqa: F401  NumPy then knows bfloat16 by its name
import numpy as np


def pack(arrays: Sequence[np.ndarray]) -> bytes:
    """The arrays one after the other, behind a line that says what they are.

    >>> [x.tolist() for x in unpack(pack([np.arange(3), np.float32(2)]))]
    [[0, 1, 2], 2.0]
    """
    arrays = [np.asarray(x) for x in arrays]
    head = json.dumps([[x.dtype.name, *x.shape] for x in arrays], separators=(",", ":")).encode()
    return b"".join([struct.pack("<I", len(head)), head, *(x.tobytes() for x in arrays)])


def unpack(data: bytes) -> list[np.ndarray]:
    """The arrays, not to be written to."""
    (length,) = struct.unpack_from("<I", data)
    position, arrays = 4 + length, []
    for name, *shape in json.loads(data[4:position]):
        dtype = np.dtype(name)
        count = int(np.prod(shape, dtype=np.int64))
        arrays.append(np.frombuffer(data, dtype, count, position).reshape(shape))
        position += count * dtype.itemsize
    return arrays
