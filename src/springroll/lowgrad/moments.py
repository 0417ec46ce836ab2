"""The inner optimizer's averages of dS, carried over to a new basis.

dS = Pᵀ G are coordinates of the gradient. When P changes, coordinates of the old basis are no
longer coordinates of the new one, and neither are their averages: C = P_newᵀ P_old translates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from springroll.errors import InputError
from springroll.lowgrad.streams import ThinLeaf
from springroll.lowgrad.subspace import Moments, Order, rotate_moment
from springroll.quant.quantize_state import FIRST, SECOND, dequantize_state, requantize_state

# Sums and averages that are linear in the gradient: accumulators of MultiSteps count as such.
LINEAR = (*FIRST, "acc_grads", "momentum_buffer")


def rotated(
    opt: Any,
    thin: Mapping[str, ThinLeaf],
    change: Mapping[str, Array],
    chosen: Mapping[str, Array],
    how: Moments,
) -> Any:
    """`opt` with every moment of S in the new bases of the chosen layers.

    `change`: stream -> (depth, bases per layer, r, r); `chosen`: stream -> (depth,) bool. States
    of `quantize_state` are decoded and coded again.
    """
    if how == "keep":
        return opt

    def turn(path: Any, leaf: Any) -> Any:
        order, user = _moment(path, leaf, thin)
        if order is None or user is None:
            return leaf
        c, mask = change[user.stream], chosen[user.stream]
        depth, bases, rank, _ = c.shape
        coordinates = jnp.swapaxes(leaf.reshape(depth, bases, user.outputs, rank), -1, -2)
        new = jnp.swapaxes(rotate_moment(c, coordinates, order, how), -1, -2)
        kept = leaf.reshape(new.shape)
        return jnp.where(mask[:, None, None, None], new, kept).reshape(leaf.shape)

    floats = dequantize_state(opt)
    return requantize_state(opt, jax.tree_util.tree_map_with_path(turn, floats))


def check(opt: Any, thin: Mapping[str, ThinLeaf], low: Mapping[str, Any], how: Moments) -> None:
    """Raise InputError if a leaf of the state is shaped like S but of unknown meaning."""
    if how == "keep":
        return

    def look(path: Any, leaf: Any) -> None:
        order, user = _moment(path, leaf, thin)
        if user is not None and order is None and leaf.shape == low[user.path].shape:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise InputError(
                f"optimizer state {name} has the shape of S, and nothing tells how it changes with"
                " the basis; use moments='keep' or an optimizer whose moments are called mu and nu."
            )

    jax.tree_util.tree_map_with_path(look, dequantize_state(opt))


def _moment(
    path: tuple[Any, ...], leaf: Any, thin: Mapping[str, ThinLeaf]
) -> tuple[Order | None, ThinLeaf | None]:
    """(what the leaf is an average of, whose) for one leaf of an optimizer state."""
    parts = [jax.tree_util.keystr((key,), simple=True) for key in path]
    start = next(
        (i for i in range(len(parts)) if "/".join(parts[i:]) in thin and jnp.ndim(leaf)), None
    )
    if start is None:
        return None, None
    fields = [key.name for key in path[:start] if isinstance(key, jax.tree_util.GetAttrKey)]
    order: Order | None = None
    for name in fields:  # the outermost name that says it
        if name in LINEAR or name in SECOND:
            order = "first" if name in LINEAR else "second"
            break
    return order, thin["/".join(parts[start:])]
