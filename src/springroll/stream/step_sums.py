"""What a step sums over micro-batches, layers and parts of a gradient."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from springroll.trees import PyTree, squared_norm

square = jax.jit(squared_norm)


def begun(grads: dict[str, PyTree], weights: dict[str, PyTree]) -> dict[str, PyTree]:
    """The gradients that there are of these weights so far, and None."""
    none = lambda tree: jax.tree.map(lambda _: None, tree)
    return {name: grads[name] if name in grads else none(tree) for name, tree in weights.items()}


@jax.jit
def averaged(trees: list[PyTree]) -> PyTree:
    """The mean of the real leaves, the sum of integers (counts)."""

    def one(*leaves: Array) -> Array:
        total: Array = functools.reduce(operator.add, leaves)
        return total / len(leaves) if jnp.issubdtype(total.dtype, jnp.floating) else total

    return jax.tree.map(one, *trees)


@jax.jit
def all_finite(good: Array | bool, *numbers: Array) -> Array:
    """Whether all are, and it was good before."""
    return functools.reduce(operator.and_, map(jnp.isfinite, numbers), jnp.asarray(good))


@jax.jit
def norm_of(squares: list[Array]) -> Array:
    """The norm of a whole gradient, from the squared norms of its parts."""
    return jnp.sqrt(jnp.stack(squares).sum())


def index(layer: int) -> np.int32:
    return np.int32(layer)
