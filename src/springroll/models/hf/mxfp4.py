"""Weights of four bits in blocks of 32 that share an exponent, read as bfloat16, one expert a time.

gpt-oss stores the experts of a layer so: `NAME_blocks` (E, out, in / 32, 16) bytes, two numbers in
each, the low half first, and `NAME_scales` (E, out, in / 32) bytes, exponents of two plus 127.
Source: OCP Microscaling Formats (MX) specification 1.0. bfloat16 holds every such number exactly.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from springroll.errors import InputError
from springroll.safetensors_map import forget

_HALF = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_NUMBERS = np.array([*_HALF, *(-x for x in _HALF)], np.float32)
_IN_BYTE = np.stack([_NUMBERS[np.arange(256) & 15], _NUMBERS[np.arange(256) >> 4]], axis=1)


class Mxfp4:
    """A tensor (E, in, out) in the shape of those that are not quantized; `x[e, :, columns]` reads
    the weights of one expert."""

    def __init__(self, blocks: np.ndarray, scales: np.ndarray) -> None:
        self._blocks, self._scales = blocks, scales
        experts, rows, count, width = blocks.shape
        self.shape = (experts, 2 * count * width, rows)
        self.dtype = np.dtype(jnp.bfloat16)

    def __getitem__(self, part: Any) -> np.ndarray:
        """(in, columns) bfloat16; takes the memory of one expert."""
        expert, _, columns = part
        blocks, scales = self._blocks[expert], self._scales[expert]
        with np.errstate(over="ignore"):
            exponent = scales[columns].astype(np.int32) - 127
            numbers = np.ldexp(_IN_BYTE[blocks[columns]], exponent[..., None, None])
        found = numbers.reshape(len(exponent), -1).astype(jnp.bfloat16).T
        forget(blocks)
        forget(scales)
        return found


def with_mxfp4(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of a checkpoint, with one in the place of each pair of blocks and scales.

    Raises:
        InputError: the shapes or types of a pair do not fit.
    """
    found: dict[str, Any] = dict(tensors)
    for name in tensors:
        stem = name.removesuffix("_blocks")
        if stem == name or f"{stem}_scales" not in tensors:
            continue
        blocks, scales = found.pop(name), found.pop(f"{stem}_scales")
        bytes_ = blocks.dtype == scales.dtype == np.uint8
        if not bytes_ or blocks.ndim != 4 or blocks.shape != (*scales.shape, 16):
            raise InputError(
                f"{name} is {blocks.dtype}{list(blocks.shape)} and its scales {scales.dtype}"
                f"{list(scales.shape)}; expected bytes, [..., 16] and [...]"
            )
        found[stem] = Mxfp4(blocks, scales)
    return found
