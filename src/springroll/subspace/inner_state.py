"""Finding the moments of low-rank gradients inside the state of any optax transformation.

A state is walked by path. An array whose path is a known field name followed by the path of a
parameter is a moment of its low-rank gradient: for Adam `[0].mu["layers"]["w"]` and
`[0].nu["layers"]["w"]`. What bears other names is left alone. Moments stored in fewer bits
(`quant.quantize_state`) are decoded, and coded again afterwards.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
from jax import Array

from springroll.quant.quantize_state import FIRST as FIRST_MOMENTS
from springroll.quant.quantize_state import SECOND
from springroll.quant.root_companding import Quantized, dequantize, requantize
from springroll.subspace.basis import Order
from springroll.subspace.matrix_view import path_of

# Averages of the gradient itself turn with its coordinates; those of its square stay positive.
FIRST = (*FIRST_MOMENTS, "acc_grads")


class Moment(NamedTuple):
    """Where a state keeps a moment of a parameter."""

    at: int  # among the leaves of `state_leaves`
    path: str  # of the parameter
    order: Order


def find_moments(state: Any, paths: Collection[str]) -> list[Moment]:
    """All moments of the parameters at `paths` (parts joined by "/")."""
    found = []
    leaves = jax.tree_util.tree_leaves_with_path(state, is_leaf=_coded)
    for at, (path, _) in enumerate(leaves):
        for i, key in enumerate(path):
            order = _order(getattr(key, "name", ""))
            if order is not None and path_of(path[i + 1 :]) in paths:
                found.append(Moment(at, path_of(path[i + 1 :]), order))
                break
    return found


def state_leaves(state: Any) -> tuple[list[Any], Any]:
    """Arrays and coded arrays of a state, and the structure to put them back."""
    return jax.tree.flatten(state, is_leaf=_coded)


def decode(leaf: Any) -> Array:
    """The moment that a leaf of `state_leaves` stands for."""
    return dequantize(leaf) if _coded(leaf) else leaf


def encode(leaf: Any, moment: Array) -> Any:
    """`moment` in the form of `leaf`."""
    return requantize(leaf, moment) if _coded(leaf) else moment


def _coded(node: Any) -> bool:
    return isinstance(node, Quantized)


def _order(field: str) -> Order | None:
    return "first" if field in FIRST else "second" if field in SECOND else None
