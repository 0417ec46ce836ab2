"""Observations of any structure as one flat vector."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def flat(tree: Any) -> Array:
    """All numbers of a pytree, float32 (size,).

    Leaves come in JAX's order: fields of a tuple or dataclass as they are declared, entries of a
    dict by name; each is read row by row.
    """
    leaves = [jnp.ravel(jnp.asarray(leaf)).astype(jnp.float32) for leaf in jax.tree.leaves(tree)]
    return leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves)


def flat_size(shapes: Any) -> int:
    """The length of `flat(tree)`, from a tree of arrays or of shapes of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))
