"""Embedding and head one after the other, for an update on the device.

An optimizer treats each array by itself, or it is refused where states are made; so an entry of the
rest, its gradient and its part of the state make the new entry.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from springroll.stream.table_rows import by_rows
from springroll.trees import PyTree, path_of


class Piece(NamedTuple):
    """An entry of the rest: numbers of its weights and of its state, and the structure of that."""

    name: str
    weights: list[int]
    state: list[int]
    structure: PyTree


def pieces(
    optimizer: optax.GradientTransformation, weights: dict[str, PyTree], state: PyTree
) -> list[Piece]:
    """What of a rest with a large table is updated by itself; nothing, where that cannot be.

    Args:
        optimizer: of the rest.
        weights, state: arrays, or their shapes.
    """
    if not any(by_rows(w.shape) for w in jax.tree.leaves(weights)):
        return []
    paths = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    known, found, begin = {path: number for number, path in enumerate(paths)}, list[Piece](), 0
    for name, tree in weights.items():
        end = begin + len(jax.tree.leaves(tree))
        alone = {name: jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, jnp.float32), tree)}
        try:
            own = jax.eval_shape(optimizer.init, alone)
        except (KeyError, TypeError, ValueError):
            return []  # it knows the whole tree
        mine = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(own)]
        if not known.keys() >= set(mine):
            return []
        numbers = [known[path] for path in mine]
        found.append(Piece(name, [*range(begin, end)], numbers, jax.tree.structure(own)))
        begin = end
    covered = {number for piece in found for number in piece.state}
    return found if covered == set(known.values()) else []
