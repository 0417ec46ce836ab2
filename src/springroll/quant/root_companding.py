"""Numbers of very different size in 8 or 4 bits: roots are stored, in blocks with one scale each.

A block is a run of numbers that share a scale s = max |x|. With k levels, the codes are

    signed (first moments)         c = round(sign(x) k (|x| / s)^(1/2)),  x' = sign(c) s (c / k)^2
    nonnegative (second moments)   c = max(1, round(k (x / s)^(1/4))),    x' = s (c / k)^4

k = 127 and 255 with 8 bits, 7 and 15 with 4. The root spends the codes where most of the numbers
are; code 0 is forbidden for second moments, because they are divided by: a small one that became
zero would turn 1 / sqrt(v) into 1 / eps. No table is looked up. Decoding and coding again gives the
same codes, so a number that does not change never drifts.

On moments of heavy-tailed gradients x is off by 0.9 % (relative rms; linear codes 2.0 %) in 8 bits,
sqrt(v) by 0.7 % (median; linear 12 %, and every third by more than a factor of two); in 4 bits by
14 % and 11 % (linear 23 %, and most v are zero): `python -m bench.state_quantization`.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from springroll.trees import serializable

BLOCK = {8: 256, 4: 128}  # numbers per scale, by bits
# Below, a scale is taken for zero: quotients would leave the range of float32.
_TINY = np.float32(1e-37)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("codes", "scales", "draws"),
    meta_fields=("tail", "dtype", "bits", "block", "signed", "seed"),
)
@dataclasses.dataclass(frozen=True)
class Quantized:
    """A float array in codes; a pytree node whose children are plain arrays.

    The leading axes of the array are those of `codes` and `scales`, so a slice of both along a
    leading axis is the quantised slice, and both can be sharded along it. Its trailing axes `tail`
    are merged into one: only the last, unless that is shorter than a block.

    codes: (..., n) int8 or uint8; with 4 bits (..., ceil(n / 2)) uint8, two numbers in a byte.
    scales: (..., ceil(n / block)) float32.
    draws: () uint32, how often it was rounded at random; None where rounding is to nearest.
    """

    codes: Array
    scales: Array
    draws: Array | None
    tail: tuple[int, ...]
    dtype: str
    bits: int
    block: int
    signed: bool
    seed: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.codes.shape[:-1], *self.tail)


serializable(Quantized, ("codes", "scales", "draws"))


def quantize(
    x: Array,
    *,
    bits: int,
    block: int | None = None,
    signed: bool,
    stochastic: bool = False,
    seed: int = 0,
    axes: int | None = None,
) -> Quantized:
    """Codes of a float array with at least one axis, with a scale for each `block` numbers.

    Blocks lie along the last axis and never cross it, unless it is shorter than a block: then
    trailing axes are merged, but never the first, which is the stack of layers. With `axes`, so
    many trailing ones are merged. Blocks are as long as each other, at most `block` (`BLOCK` by
    default); a remainder does not cost a block of padding. Non-finite numbers make their block
    NaN. With `stochastic`, see `rounded`.
    """
    block = block or BLOCK[bits]
    if axes is None:
        axes = 1
        while axes < x.ndim - 1 and math.prod(x.shape[-axes:]) < block:
            axes += 1
    tail = x.shape[x.ndim - axes :]
    n = math.prod(tail)
    even = math.ceil(n / math.ceil(n / block))
    like = Quantized(
        codes=jax.ShapeDtypeStruct((*x.shape[: x.ndim - axes], n), jnp.int8),  # pyright: ignore
        scales=jax.ShapeDtypeStruct((), jnp.float32),  # pyright: ignore
        draws=jnp.zeros((), jnp.uint32) if stochastic else None,
        tail=tail,
        dtype=jnp.dtype(x.dtype).name,
        bits=bits,
        block=even + even % 2 if bits == 4 else even,
        signed=signed,
        seed=seed,
    )
    return requantize(like, x)


def requantize(like: Quantized, x: Array, part: ArrayLike = 0) -> Quantized:
    """`x` in the form of `like`; where that rounds at random, with the next draw.

    `part` tells pieces of an array that are coded one by one apart.
    """
    power, levels = _law(like.bits, like.signed)
    blocks = _blocks(x.astype(jnp.float32).reshape(*like.codes.shape[:-1], -1), like.block)
    scales = jnp.abs(blocks).max(-1)
    scales = jnp.where(scales < _TINY, np.float32(0), scales)
    share = jnp.abs(blocks) / jnp.where(scales == 0, np.float32(1), scales)[..., None]
    root = jnp.sqrt(share) if power == 2 else jnp.sqrt(jnp.sqrt(share))
    place = root * np.float32(levels)
    if like.draws is None:
        codes, draws = jnp.round(place), None
    else:
        key = jax.random.fold_in(jax.random.key(like.seed), like.draws.reshape(-1)[0])
        key = jax.random.fold_in(key, part)
        codes = rounded(place, power, jax.random.uniform(key, place.shape))
        draws = like.draws + np.uint32(1)
    if like.signed:
        codes = jnp.where(blocks < 0, -codes, codes)
    else:
        codes = jnp.maximum(codes, np.float32(1))
    flat = codes.reshape(*codes.shape[:-2], -1)[..., : math.prod(like.tail)]
    return dataclasses.replace(like, codes=_stored(flat, like), scales=scales, draws=draws)


def dequantize(q: Quantized) -> Array:
    """The float array that the codes stand for, in its own shape and dtype."""
    power, levels = _law(q.bits, q.signed)
    codes = _blocks(_unpacked(q).astype(jnp.float32), q.block)
    size = jnp.abs(codes) * np.float32(1 / levels)
    size = size * size if power == 2 else jnp.square(size * size)
    x = jnp.where(codes < 0, -size, size) * q.scales[..., None]
    flat = x.reshape(*x.shape[:-2], -1)[..., : math.prod(q.tail)]
    return flat.reshape(q.shape).astype(q.dtype)


def rounded(place: Array, power: int, uniform: Array) -> Array:
    """One of the two codes beside `place`, at random, such that place**power is kept on average.

    So an average that moves by less than half a code per step still moves: at 4 bits, and for
    second moments with a decay of 0.999 at 8 bits, rounding to nearest would hold it still.
    """
    low = jnp.floor(place)
    below, above = low**power, (low + np.float32(1)) ** power
    return jnp.where(uniform * (above - below) < place**power - below, low + np.float32(1), low)


def _law(bits: int, signed: bool) -> tuple[int, int]:
    """The power that undoes the root, and the largest code."""
    return (2, 2 ** (bits - 1) - 1) if signed else (4, 2**bits - 1)


def _blocks(x: Array, block: int) -> Array:
    """(..., n) -> (..., blocks, block), the last one filled up with zeros."""
    missing = -x.shape[-1] % block
    if missing:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
    return x.reshape(*x.shape[:-1], -1, block)


def _stored(codes: Array, like: Quantized) -> Array:
    """(..., n) float codes as bytes."""
    if like.bits == 8:
        return codes.astype(jnp.int8 if like.signed else jnp.uint8)
    nibbles = _blocks(codes.astype(jnp.int8).astype(jnp.uint8) & np.uint8(15), 2)
    return nibbles[..., 0] | (nibbles[..., 1] << np.uint8(4))


def _unpacked(q: Quantized) -> Array:
    """The codes (..., n) as int8 or uint8."""
    if q.bits == 8:
        return q.codes
    pairs = jnp.stack([q.codes & np.uint8(15), q.codes >> np.uint8(4)], -1)
    nibbles = pairs.reshape(*q.codes.shape[:-1], -1)[..., : math.prod(q.tail)]
    if not q.signed:
        return nibbles
    return (nibbles ^ np.uint8(8)).astype(jnp.int8) - np.int8(8)
