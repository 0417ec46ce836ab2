"""Normal numbers of a key that are drawn where they are asked for: a part of an array, not all.

The bits of `jax.random.normal` are a function of the key and of the place in the array (threefry on
a counter), so a part can be drawn by itself, with the same bits as in the whole.
"""

import functools
import math
from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend.random import threefry_2x32

At: TypeAlias = tuple[int | slice, ...]


@dataclass(frozen=True)
class Drawn:
    """scale * jax.random.normal(key, shape), of which only what is indexed is drawn.

    key: a typed threefry key. shape, start, of: this is what lies in an array of the shape `of`,
    row by row, from place `start` on.
    """

    key: Array
    shape: tuple[int, ...]
    scale: float
    start: int = 0

    @property
    def size(self) -> int:
        """Numbers."""
        return math.prod(self.shape)

    def __getitem__(self, at: int | slice | At) -> "Drawn":
        """A part that is one stretch of memory; see `stretch`."""
        start, shape = stretch(self.shape, at if isinstance(at, tuple) else (at,))
        return Drawn(self.key, shape, self.scale, self.start + start)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        start = np.array([self.start >> 32, self.start & 0xFFFFFFFF], np.uint32)
        values = _normal(jax.random.key_data(self.key), start, self.size)
        return np.asarray(values * np.float32(self.scale), dtype).reshape(self.shape)


def stretch(shape: tuple[int, ...], at: At) -> tuple[int, tuple[int, ...]]:
    """(number of the first element, shape) of a part of an array that is one stretch of memory.

    Args:
        shape: of the array, which lies row by row.
        at: integers, then at most one slice that is not that of a whole axis.

    Raises:
        IndexError: the part is in several pieces.

    >>> stretch((3, 4, 5), (1, slice(2, 4)))
    (30, (2, 5))
    """
    left, start = shape, 0
    for number, part in enumerate(at):
        if isinstance(part, int):
            size, *left = left
            start += range(size)[part] * math.prod(left)
            continue
        rows = range(*part.indices(left[0]))
        if rows.step != 1 or any(each != slice(None) for each in at[number + 1 :]):
            raise IndexError(f"{at} of {shape} is not one stretch of memory")
        return start + rows.start * math.prod(left[1:]), (len(rows), *left[1:])
    return start, tuple(left)


def drawn_apart(key: Array) -> bool:
    """Whether arrays of this key can be drawn in parts: it is threefry's, counted by place."""
    counted = jax.config.jax_threefry_partitionable  # type: ignore[attr-defined]
    return bool(counted) and str(jax.random.key_impl(key)) == "threefry2x32"


@functools.partial(jax.jit, static_argnums=2)
def _normal(words: Array, start: Array, size: int) -> Array:
    """`jax.random.normal` at the places start, start + 1, ... (size,) float32.

    Source: jax.random, threefry with `jax_threefry_partitionable`.
    """
    low = start[1] + lax.iota(jnp.uint32, size)
    high = start[0] + (low < start[1]).astype(jnp.uint32)
    halves = threefry_2x32((words[0], words[1]), jnp.concatenate([high, low]))
    bits = halves[:size] ^ halves[size:]
    one = np.float32(1).view(np.uint32)
    share = lax.bitcast_convert_type((bits >> np.uint32(9)) | one, jnp.float32) - np.float32(1)
    least = np.nextafter(np.float32(-1), np.float32(0))
    uniform = lax.max(least, share * (np.float32(1) - least) + least)
    return np.float32(np.sqrt(2)) * lax.erf_inv(uniform)
