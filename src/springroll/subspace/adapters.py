"""Adapters beside frozen weights: a thin term of which both sides are trained.

    W + scale B A,     A (rank, in) random, B (out, rank) zero at first

The frozen matrices may be coded in 8 or 4 bits. Names and the first A and B are those of PEFT.

Source: arXiv 2106.09685; coded bases 2305.14314.
"""

import functools
import zlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from springroll.quant.int8_weights import Int8, int8_of, real
from springroll.quant.nf4_weights import Nf4, nf4_of, nf4_real
from springroll.subspace.optimizers import is_block_matrix
from springroll.thin.factored_array import Factored
from springroll.trees import Params, PyTree, map_named

CODES: Mapping[int, Callable[[Array], PyTree]] = {8: int8_of, 4: nf4_of}  # by bits
A, B = "lora_A", "lora_B"


def adapted(path: str, _: PyTree = None) -> bool:
    """Whether a parameter gets an adapter: the matrices of blocks, as those that are projected."""
    return is_block_matrix(path)


def first_adapters(key: Array, shapes: Params, rank: int) -> Params:
    """The first A and B of every adapted matrix (..., out, in); `shapes` is a tree of structs.

    The tree is that of the parameters with {"lora_A": (..., rank, in), "lora_B": (..., out, rank)},
    float32, in the place of an adapted matrix and None in that of others. A is uniform within
    +-1 / sqrt(in), as that of PEFT; every matrix has a key of its own, by its path.
    """

    def one(path: str, w: jax.ShapeDtypeStruct) -> Params | None:
        if not adapted(path):
            return None
        *stack, out, width = w.shape
        of_path = jax.random.fold_in(key, zlib.crc32(path.encode()))
        most = np.float32(width**-0.5)
        a = jax.random.uniform(of_path, (*stack, rank, width), jnp.float32, -most, most)
        return {A: a, B: jnp.zeros((*stack, out, rank), jnp.float32)}

    return map_named(one, shapes)


def with_adapters(base: Params, trained: Params, scale: float) -> Params:
    """The parameters with `Factored` leaves, as the models' layers take them; `scale` is
    alpha / rank."""

    def one(w: PyTree, of: Params | None) -> PyTree:
        if of is None:
            return w
        left, right = of[B] * np.float32(scale), jnp.swapaxes(of[A], -1, -2)
        return Factored(w, left, right, roles="s" * (left.ndim - 2) + "mn")

    return jax.tree.map(one, base, trained, is_leaf=is_weight)


@functools.partial(jax.jit, static_argnums=1)
def formed(w: Factored, dtype: str) -> Array:
    """One matrix with its thin term added, in floats of `dtype`; the sum is float32."""
    return Factored(floats(w.base), w.left, w.right, roles=w.roles).dense(dtype)


def floats(w: PyTree) -> Array:
    """What a weight stands for; float32 where it is coded."""
    return real(w) if isinstance(w, Int8) else nf4_real(w) if isinstance(w, Nf4) else w


def is_weight(x: PyTree) -> bool:
    """Whether a node of a tree is one weight."""
    return isinstance(x, Int8 | Nf4 | jax.Array | jax.ShapeDtypeStruct)
