"""The kinds of noise a population can be perturbed with.

A kind is a name, a scale and a pure function `sample(stream, pairs, size) -> (P, size)`: every
number depends on (seed, epoch, parameter path, pair, element) and on nothing else. To add a kind,
write a `sample` and put one line in `NOISE`.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from springroll.errors import InputError, expect
from springroll.noise import counter

TABLE_SIZE = 1 << 22
_SLICE = 1 << 16


class Noise(NamedTuple):
    """How to draw zero-mean symmetric numbers of unit variance after scaling.

    Args:
        name: the kind's name in `NOISE`.
        scale: `sample * scale` has unit variance.
        bound: the largest |sample| of an integer kind; None for real numbers.
        bytes_per_number: of a sample in memory.
        sample: (stream (2,) uint32, pairs (P,) uint32, size) -> (P, size).
    """

    name: str
    scale: float
    bound: int | None
    bytes_per_number: int
    sample: Callable[[Array, Array, int], Array]


# x / (1 - 2p) as a polynomial of w = -log(4 p (1 - p)), for p = 1 - Phi(x) from 2**-33 to 1/2:
# relative error below 1.1e-5. And log(1 + t) / t for t from sqrt(1/2) - 1 to sqrt(2) - 1.
_NORMAL = (
    5.305021287711764e-13,
    -6.685661746441696e-11,
    3.6599918651347707e-09,
    -1.1360130969251259e-07,
    2.1786636352771893e-06,
    -2.6059096853714436e-05,
    0.00017863283574115485,
    -0.00041123692062683403,
    -0.0030902796424925327,
    0.01630011945962906,
    0.32808148860931396,
    1.253318190574646,
)
_LOG = (
    -0.10134056955575943,
    0.1623418927192688,
    -0.17247013747692108,
    0.19898565113544464,
    -0.24970071017742157,
    0.33335113525390625,
    -0.5000036358833313,
    0.9999999403953552,
)
_SQRT_HALF_BITS = 0x3F3504F3


def _horner(coefficients: tuple[float, ...], x: Array) -> Array:
    y = jnp.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        y = y * x + np.float32(c)
    return y


def _log(x: Array) -> Array:
    """Natural logarithm of positive normal float32 to about 1e-7, twice as fast as `jnp.log`."""
    word = lax.bitcast_convert_type(x, jnp.int32)
    exponent = (word - _SQRT_HALF_BITS) >> 23
    t = lax.bitcast_convert_type(word - (exponent << 23), jnp.float32) - 1
    return exponent.astype(jnp.float32) * np.float32(math.log(2)) + t * _horner(_LOG, t)


def normal_from_bits(word: Array) -> Array:
    """One standard normal float32 per uniform uint32: the inverse of the distribution function.

    The lowest bit is the sign, the other 31 the tail probability, so |x| reaches 6.3. Measured at
    1.3 ns per number on one core, hash included; `lax.erf_inv` takes 2.8, a threefry normal 10-20.

    Args:
        word: (...) uniform uint32.

    Returns:
        (...) float32.
    """
    half = (word >> np.uint32(1)).astype(jnp.int32).astype(jnp.float32)
    tail = (half + np.float32(0.5)) * np.float32(2.0**-32)
    x = (1 - 2 * tail) * _horner(_NORMAL, -_log(4 * tail * (1 - tail)))
    sign = (word & np.uint32(1)) << np.uint32(31)
    return lax.bitcast_convert_type(lax.bitcast_convert_type(x, jnp.uint32) ^ sign, jnp.float32)


def _gaussian(stream: Array, pairs: Array, size: int) -> Array:
    return normal_from_bits(counter.bits(stream, pairs, size))


def _rademacher(stream: Array, pairs: Array, size: int) -> Array:
    """+1 or -1 as int8, 32 of them from each word."""
    words = counter.bits(stream, pairs, -(-size // 32))
    shifts = jnp.arange(32, dtype=jnp.uint32)
    ones = (words[:, :, None] >> shifts[None, None]) & np.uint32(1)
    signs = (ones.astype(jnp.int8) << 1) - jnp.int8(1)
    return signs.reshape(words.shape[0], -1)[:, :size]


def normal_thresholds() -> np.ndarray:
    """(254,) words: an int8 normal is -127 plus the number of thresholds not above its word."""
    edges = (np.arange(-127, 127) + 0.5) / 16
    return np.array([round(2**32 * 0.5 * math.erfc(-e / math.sqrt(2))) for e in edges], np.uint64)


@functools.cache
def int8_table() -> np.ndarray:
    """(2**22 + 2**16,) int8: rint(16 N(0, 1)) clipped to +-127; the head is repeated at the end.

    Made with integer arithmetic from counted words and exact thresholds: the same on any hardware.
    """
    index = np.arange(TABLE_SIZE, dtype=np.uint32)
    words = counter.finalize(counter.finalize(index) + np.uint32(0x51ED270B))
    values = np.searchsorted(normal_thresholds(), words, side="right") - 127
    table = values.astype(np.int8)
    return np.concatenate([table, table[:_SLICE]])


def _int8(stream: Array, pairs: Array, size: int) -> Array:
    """Contiguous slices of the table, one per pair (or per 2**16 numbers) at a hashed offset."""
    table = jnp.asarray(int8_table())
    blocks = -(-size // _SLICE)
    length = min(size, _SLICE)
    offsets = (counter.bits(stream, pairs, blocks) >> np.uint32(10)).astype(jnp.int32)
    take = jax.vmap(lambda start: lax.dynamic_slice(table, (start,), (length,)))
    return take(offsets.reshape(-1)).reshape(pairs.shape[0], blocks * length)[:, :size]


NOISE: dict[str, Noise] = {
    "gaussian": Noise("gaussian", 1.0, None, 4, _gaussian),
    "rademacher": Noise("rademacher", 1.0, 1, 1, _rademacher),
    "int8": Noise("int8", (256 + 1 / 12) ** -0.5, 127, 1, _int8),
}


def noise_named(name: str) -> Noise:
    """The kind of noise called `name`.

    Raises:
        InputError: the name is unknown; the message lists the known ones.
    """
    expect(isinstance(name, str), "noise", name, "the name of a kind")
    if name not in NOISE:
        raise InputError(f"noise {name!r} is unknown; expected one of {', '.join(sorted(NOISE))}")
    return NOISE[name]
