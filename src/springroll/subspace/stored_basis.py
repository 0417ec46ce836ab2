"""Bases as they are kept: in float32, bfloat16, or in codes of 8 or 4 bits.

Codes are those of optimizer state (`quant.root_companding`), rounded to nearest: roots, with one
scale for each run of 256 numbers along the rows of a basis (128 with 4 bits). The decoded basis is
used for everything, the way down, the way up and the turn of the moments, so that they agree. It is
not made orthonormal again. Its singular values stay within 0.5 % of one in 8 bits and within 10 %
in 4, of which Adam, which divides by the size of what it sees, notices little; the subspace keeps
100.0 % and 98.9 % of the energy that the exact one does, and a QR on every step would not bring
back what is missing (`python -m bench.basis_bits`). 4-bit projectors are from Q-GaLore (arXiv
2407.08296), which uses them as they are, too.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from springroll.errors import InputError, brief
from springroll.quant.root_companding import Quantized, dequantize, quantize, requantize
from springroll.thin.factored_array import Blocks
from springroll.trees import PyTree

BasisBits = Literal[32, 16, 8, 4]
Basis: TypeAlias = Array | Quantized
BITS_OF: dict[object, BasisBits] = {jnp.dtype("float32"): 32, jnp.dtype("bfloat16"): 16}


def checked_bits(bits: Any) -> BasisBits:
    """The same, as Python's integer.

    Raises:
        InputError: they are none of `BasisBits`.
    """
    whole = isinstance(bits, int | np.integer) and not isinstance(bits, bool)
    if not whole or int(bits) not in get_args(BasisBits):
        raise InputError(
            f"basis_bits is {brief(bits)}; expected 32 (float32), 16 (bfloat16), 8 or 4 per number"
            " of a basis"
        )
    return cast(BasisBits, int(bits))


def bits_of(dtype: DTypeLike) -> BasisBits:
    """The bits of a type that bases could be asked in before there were codes.

    Raises:
        InputError: neither float32 nor bfloat16.
    """
    if jnp.dtype(dtype) not in BITS_OF:
        raise InputError(f"basis_dtype is {jnp.dtype(dtype)}; expected float32 or bfloat16")
    return BITS_OF[jnp.dtype(dtype)]


def stored(basis: Array, bits: BasisBits, axes: int = 2) -> Basis:
    """A float32 basis (*stack, *inputs, r) as it is kept.

    Args:
        basis: whose last `axes` axes are one matrix, which shares no scale with others.
        bits: per number.
        axes: the axes of the inputs, and the rank.
    """
    if bits >= 16:
        return basis.astype(jnp.float32 if bits == 32 else jnp.bfloat16)
    return quantize(basis, bits=bits, signed=True, axes=axes)


def floats(basis: Basis) -> Array:
    """The basis that is meant: decoded, or as it is."""
    return dequantize(basis) if isinstance(basis, Quantized) else basis


def stored_like(kept: Basis, basis: Array) -> Basis:
    """A basis in the form in which another one of its shape is kept."""
    if isinstance(kept, Quantized):
        return requantize(kept, basis)
    return basis.astype(kept.dtype)


def met(basis: Basis | Blocks, *beside: Array) -> Array | Blocks:
    """A factor of weights, decoded only where it meets an activation, with others beside it."""
    if isinstance(basis, Blocks) or (isinstance(basis, Array) and not beside):
        return basis
    return Blocks((basis, *beside), floats)


def map_bases(function: Callable[..., PyTree], *trees: PyTree) -> PyTree:
    """`function` over the bases of trees of them."""
    coded = lambda x: isinstance(x, Quantized)
    return jax.tree.map(function, *trees, is_leaf=coded)
