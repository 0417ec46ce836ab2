"""The inner optimizer's averages of dS, carried over to a new basis.

dS = Pᵀ G are coordinates of the gradient. When P changes, coordinates of the old basis are no
longer coordinates of the new one, and neither are their averages: C = P_newᵀ P_old translates.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array, lax

from springroll.subspace.basis import Moments, rotate_moment
from springroll.subspace.inner_state import Leaf, Moment, decode, encode, find_moments, state_leaves
from springroll.subspace.streams import ThinLeaf
from springroll.trees import PyTree


def rotated(
    opt: PyTree,
    thin: Mapping[str, ThinLeaf],
    change: Mapping[str, Array],
    layers: Mapping[str, Array],
    counts: Mapping[str, Array],
    how: Moments,
) -> PyTree:
    """`opt` with every moment of S in the new bases of the chosen layers.

    `change`: stream -> (depth, bases per layer, r, r). The first counts[stream] of layers[stream]
    are rotated, one by one and in place. Moments in few bits are decoded and coded again.
    """
    leaves, structure = state_leaves(opt)
    shapes = {
        path: (*user.sizes("sn"), change[user.stream].shape[-1]) for path, user in thin.items()
    }
    for moment in find_moments(opt, shapes) if how != "keep" else ():
        user = thin[moment.path]
        chosen = layers[user.stream], counts[user.stream]
        leaves[moment.at] = _rotated(
            leaves[moment.at], moment, user, change[user.stream], chosen, how
        )
    return jax.tree.unflatten(structure, leaves)


def _rotated(
    leaf: Leaf,
    moment: Moment,
    user: ThinLeaf,
    change: Array,
    chosen: tuple[Array, Array],
    how: Moments,
) -> Leaf:
    _, bases, rank, _ = change.shape

    def one(part: Array, layer: Array) -> Array:
        rows = part.reshape(bases, user.outputs, rank)
        c = layer_of(change, layer)
        rotated = rotate_moment(c, jnp.swapaxes(rows, -1, -2), moment.order, how)
        return jnp.swapaxes(rotated, -1, -2).reshape(part.shape)

    return encode(leaf, update_layers(one, decode(leaf), *chosen, user.stacked))


def update_layers(
    fn: Callable[[PyTree, Array], PyTree],
    stacks: PyTree,
    layers: Array,
    count: Array,
    stacked: bool,
) -> PyTree:
    """`stacks` with fn(part, layer) in place of the parts of the first `count` of `layers`.

    A part is an entry along the first axis of every array of `stacks`, or, not `stacked`, all of
    it. The parts are updated in place, one after the other: nothing exists twice for a whole
    stack, and the program is as long for a hundred layers as for one.
    """

    def one(i: Array, stacks: PyTree) -> PyTree:
        layer = layers[i]
        if not stacked:
            return fn(stacks, layer)
        put = lambda a, part: lax.dynamic_update_index_in_dim(a, part, layer, 0)
        return jax.tree.map(put, stacks, fn(layer_of(stacks, layer), layer))

    return lax.fori_loop(0, count, one, stacks)


def layer_of(stacks: PyTree, layer: Array) -> PyTree:
    """The entry along the first axis of every array of `stacks`."""
    return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, layer, 0, keepdims=False), stacks)
