"""Random 32-bit words as a function of where they are used, not of when they are drawn.

A draw is addressed by (seed, epoch, parameter path, pair, element). The first three are mixed once
per leaf into a *stream* of two words, the pair is mixed in once per pair, and only a short keyed
mix is left to do per element: three multiplications, about 0.4 ns on one core, against 10-20 ns for
a threefry normal. The mix is the 32-bit finalizer `x ^= x >> 16; x *= a; x ^= x >> 15; x *= b; x ^=
x >> 15` with the multipliers of least bias found by the hash-prospector search, keyed before and in
the middle, so that two pairs whose counters happen to overlap still see unrelated words.
"""

import hashlib
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

_GOLDEN, _MUL_A, _MUL_B, _MUL_C = 0x9E3779B9, 0x21F0AAAD, 0x735A2D97, 0xD168AAAD
_u32 = np.uint32
Words = TypeVar("Words", Array, np.ndarray)


def finalize(x: Words) -> Words:
    """A bijection on uint32 in which every input bit flips every output bit half of the time."""
    x = (x ^ (x >> _u32(16))) * _u32(_MUL_A)
    x = (x ^ (x >> _u32(15))) * _u32(_MUL_B)
    return x ^ (x >> _u32(15))


def fold(words: ArrayLike, value: Any) -> Array:
    """Mix one more word into two: `words` (..., 2) and `value` (...) uint32 give (..., 2).

    Of two NumPy arrays it is one: what is known when a program is traced is no part of it.
    """
    known = isinstance(words, np.ndarray) and isinstance(value, np.ndarray)
    xp: Any = np if known else jnp
    word, value = xp.asarray(words), xp.asarray(value).astype(np.uint32)
    with np.errstate(over="ignore"):
        first = finalize(word[..., 0] ^ finalize(value + _u32(_GOLDEN)))
        second = finalize(word[..., 1] + finalize(first ^ (value * _u32(_MUL_C) + _u32(1))))
        return xp.stack([first + second, second], axis=-1)


def stream(seed: Array | np.ndarray, epoch: ArrayLike, path: str) -> Array:
    """The two words from which every draw for one parameter in one epoch follows.

    The path enters by a hash that does not depend on the process (blake2b), so runs resume
    anywhere. Of a NumPy seed and a Python number it is computed at once (`fold`).

    Args:
        seed: (2,) uint32.
        epoch: an integer scalar.
        path: the parameter's path, such as "mlp/up".

    Returns:
        (2,) uint32.
    """
    digest = np.frombuffer(hashlib.blake2b(path.encode(), digest_size=8).digest(), "<u4")
    epoch = np.asarray(epoch) if isinstance(epoch, int) else epoch
    words = fold(seed.astype(np.uint32), epoch)
    return fold(fold(words, digest[:1].reshape(())), digest[1:].reshape(()))


def bits(words: Array, pairs: Array, size: int, first: ArrayLike = 0) -> Array:
    """Uniform words for the elements `first .. first + size` of each pair.

    Args:
        words: (2,) uint32, a `stream`.
        pairs: (P,) uint32, the numbers of the pairs.
        size: how many words per pair.
        first: the number of the first element, an integer scalar.

    Returns:
        (P, size) uint32.
    """
    keys = fold(words[None], pairs)
    if pairs.shape[0] > 1:
        # Without the barrier XLA fuses the key of a pair into the loop over its elements: 2.5x
        # slower. A single key is a scalar to XLA, and barriers of scalars crash its CPU compiler
        # where they are kept (see `edge_jit`).
        keys = lax.optimization_barrier(keys)
    element = (jnp.arange(size, dtype=jnp.uint32) + jnp.asarray(first, jnp.uint32)) * _u32(_GOLDEN)
    x = element[None] + keys[:, :1]
    x = (x ^ (x >> _u32(16))) * _u32(_MUL_A)
    x = (x ^ (x >> _u32(15))) + keys[:, 1:]
    x = x * _u32(_MUL_B)
    x = (x ^ (x >> _u32(15))) * _u32(_MUL_C)
    return x ^ (x >> _u32(15))
