"""Finding the moments of low-rank gradients inside the state of any optax transformation.

A state is walked by path. An array whose path is a known field name followed by the path of a
parameter is a moment of its low-rank gradient: for Adam `[0].mu["layers"]["w"]` and
`[0].nu["layers"]["w"]`. What bears other names is left alone. Moments stored in fewer bits
(`quant.quantize_state`) are decoded, and coded again afterwards.
"""

from collections.abc import Collection
from typing import NamedTuple, TypeAlias

import jax
from jax import Array

from springroll.quant.quantize_state import FIRST as FIRST_MOMENTS
from springroll.quant.quantize_state import SECOND
from springroll.quant.root_companding import Quantized, dequantize, requantize
from springroll.subspace.basis import Order
from springroll.trees import PyTree, path_of

# Averages of the gradient itself turn with its coordinates; those of its square stay positive.
FIRST = (*FIRST_MOMENTS, "acc_grads")


Leaf: TypeAlias = Array | Quantized  # of an optimizer's state


class Moment(NamedTuple):
    """Where a state keeps a moment of a parameter."""

    at: int  # among the leaves of `state_leaves`
    path: str  # of the parameter
    order: Order


def find_moments(state: PyTree, paths: Collection[str]) -> list[Moment]:
    """All moments of the parameters at `paths` (parts joined by "/")."""
    moments = []
    leaves = jax.tree_util.tree_leaves_with_path(state, is_leaf=_coded)
    for at, (path, _) in enumerate(leaves):
        for i, key in enumerate(path):
            order = _order(getattr(key, "name", ""))
            if order is not None and path_of(path[i + 1 :]) in paths:
                moments.append(Moment(at, path_of(path[i + 1 :]), order))
                break
    return moments


def state_leaves(state: PyTree) -> tuple[list[Leaf], PyTree]:
    """Arrays and coded arrays of a state, and the structure to put them back."""
    return jax.tree.flatten(state, is_leaf=_coded)


def decode(leaf: Leaf) -> Array:
    """The moment that a leaf of `state_leaves` stands for."""
    return dequantize(leaf) if isinstance(leaf, Quantized) else leaf


def encode(leaf: Leaf, moment: Array) -> Leaf:
    """`moment` in the form of `leaf`."""
    return requantize(leaf, moment) if isinstance(leaf, Quantized) else moment


def _coded(node: object) -> bool:
    return isinstance(node, Quantized)


def _order(field: str) -> Order | None:
    return "first" if field in FIRST else "second" if field in SECOND else None
