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
from springroll.subspace.basis import Moments, rotate_moment
from springroll.subspace.each_layer import each_layer, layer_of
from springroll.subspace.inner_state import Moment, decode, encode, find_moments, state_leaves
from springroll.subspace.matrix_view import path_of
from springroll.subspace.streams import ThinLeaf


def rotated(
    opt: Any,
    thin: Mapping[str, ThinLeaf],
    change: Mapping[str, Array],
    layers: Mapping[str, Array],
    counts: Mapping[str, Array],
    how: Moments,
) -> Any:
    """`opt` with every moment of S in the new bases of the chosen layers.

    `change`: stream -> (depth, bases per layer, r, r). The first counts[stream] of layers[stream]
    are turned, one by one and in place. Moments in few bits are decoded and coded again.
    """
    leaves, structure = state_leaves(opt)
    for moment in find_moments(opt, thin) if how != "keep" else ():
        user = thin[moment.path]
        chosen = layers[user.stream], counts[user.stream]
        leaves[moment.at] = _turned(
            leaves[moment.at], moment, user, change[user.stream], chosen, how
        )
    return jax.tree.unflatten(structure, leaves)


def _turned(
    leaf: Any,
    moment: Moment,
    user: ThinLeaf,
    change: Array,
    chosen: tuple[Array, Array],
    how: Moments,
) -> Any:
    _, bases, rank, _ = change.shape

    def one(part: Array, layer: Array) -> Array:
        rows = part.reshape(bases, user.outputs, rank)
        c = layer_of(change, layer)
        turned = rotate_moment(c, jnp.swapaxes(rows, -1, -2), moment.order, how)
        return jnp.swapaxes(turned, -1, -2).reshape(part.shape)

    return encode(leaf, each_layer(one, decode(leaf), *chosen, user.stacked))


def check(opt: Any, thin: Mapping[str, ThinLeaf], low: Mapping[str, Any], how: Moments) -> None:
    """Raise InputError if the state holds something shaped like S of which nothing is known."""
    known = {moment.at for moment in find_moments(opt, thin)} if how != "keep" else None
    leaves = jax.tree_util.tree_leaves_with_path(opt)
    if known is None or len(leaves) != len(state_leaves(opt)[0]):  # few bits: only moments are
        return
    for at, (path, leaf) in enumerate(leaves):
        end = next((i for i in range(len(path)) if path_of(path[i:]) in thin), None)
        if end is None or at in known:
            continue
        if jnp.shape(leaf) == low[path_of(path[end:])].shape:
            raise InputError(
                f"optimizer state {path_of(path)} is shaped like S, and nothing tells how it"
                " changes with the basis; use moments='keep' or an optimizer whose averages are"
                " called mu and nu, as in optax.adam."
            )
