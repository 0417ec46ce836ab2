"""Frozen weights in four bits: the codes of NF4, with a scale for every 64 numbers of a row.

    W[o, i] = scale[o, i // 64] * LEVELS[code[o, i]],     scale = max |W| of the 64 numbers

The sixteen levels are those at which normally distributed numbers are about equally frequent, so a
normal weight is off by 9.2 % (rms; equal steps: 10.8 %). Scales are bfloat16, and codes are chosen
beside the rounded scale. A number takes 4.25 bits.

Source: QLoRA, arXiv 2305.14314, section 3 and appendix E. There scales are float32, coded in turn.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

BLOCK = 64  # numbers per scale
LEVELS = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
_BETWEEN = (LEVELS[1:] + LEVELS[:-1]) / 2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Nf4:
    """A matrix, or a stack of them, in four bits. See `nf4_of` and `nf4_real`.

    A pytree node whose leaves have the stack's axes first: a slice of both is the slice.

    Args:
        codes: (..., out, blocks, 32) uint8: number i of a block in the lower half of byte i, number
            i + 32 in the upper one. Slices may have shorter blocks.
        scale: (..., out, blocks) bfloat16.
        inputs: of the matrix (..., out, in); the last block is filled up with zeros.
    """

    codes: Array
    scale: Array
    inputs: int = field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.scale.shape[:-1], self.inputs)


def nf4_of(w: Array) -> Nf4:
    """The nearest levels; `w` (..., out, in) of any float type."""
    inputs = w.shape[-1]
    w = jnp.pad(w.astype(jnp.float32), [(0, 0)] * (w.ndim - 1) + [(0, -inputs % BLOCK)])
    blocks = w.reshape(*w.shape[:-1], -1, BLOCK)
    scale = jnp.abs(blocks).max(-1).astype(jnp.bfloat16)
    wide = scale.astype(jnp.float32)[..., None]
    share = blocks / jnp.where(wide > 0, wide, np.float32(1))
    code = jnp.searchsorted(_BETWEEN, share, side="left", method="compare_all").astype(jnp.uint8)
    return Nf4(_packed(code), scale, inputs)


def nf4_real(w: Nf4, dtype: DTypeLike = jnp.float32) -> Array:
    """The weights (..., out, in) that the codes stand for, in a type of floats."""
    level = jnp.asarray(LEVELS).at[_unpacked(w)].get(mode="promise_in_bounds")
    numbers = (level * w.scale.astype(jnp.float32)[..., None]).astype(dtype)
    return numbers.reshape(*w.scale.shape[:-1], -1)[..., : w.inputs]


def in_blocks_of(w: Nf4, size: int) -> Nf4:
    """The same numbers with a scale for every `size` of them and nothing filled up.

    `size` is even and divides both the block as it is and the inputs.
    """
    count, finer = w.inputs // size, 2 * w.codes.shape[-1] // size
    codes = _unpacked(w).reshape(*w.scale.shape[:-1], -1, size)[..., :count, :]
    return Nf4(_packed(codes), jnp.repeat(w.scale, finer, axis=-1)[..., :count], w.inputs)


def _packed(codes: Array) -> Array:
    half = codes.shape[-1] // 2
    return codes[..., :half] | codes[..., half:] << np.uint8(4)


def _unpacked(w: Nf4) -> Array:
    return jnp.concatenate([w.codes & np.uint8(15), w.codes >> np.uint8(4)], -1)
