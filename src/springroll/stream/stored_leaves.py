"""Leaves of a store as a checkpoint sees them: put together from bundles, written in place.

A leaf knows its shape and type without holding a byte. Read with `np.asarray`, it waits until its
bundles are settled and puts them together; in `slices`, one piece is alive beside the store at a
time. `overwrite` puts values back where they belong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import DTypeLike

from springroll.stream.bundles import Bundles, Index, kinds
from springroll.stream.store import HostStore
from springroll.trees import PyTree, map_named


class Piece(NamedTuple):
    """whole[at] is leaf number `leaf` of a bundle; a stretch of memory of the whole."""

    bundle: int
    leaf: int
    at: Index


class StoredLeaf:
    """An array of this shape that these pieces of a field make."""

    def __init__(
        self, store: HostStore, field: str, shape: tuple[int, ...], pieces: Sequence[Piece]
    ):
        self._store, self._field, self._pieces = store, field, pieces
        self.dtype = np.dtype(store.struct(pieces[0].bundle, field, pieces[0].leaf).dtype)
        self.shape = tuple(shape)
        self.size = int(np.prod(self.shape))
        self.ndim = len(self.shape)

    def block_until_ready(self) -> StoredLeaf:
        """What `jax.block_until_ready` calls."""
        self._store.settle()
        return self

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        self.block_until_ready()
        out = np.empty(self.shape, dtype or self.dtype)
        for piece in self._pieces:
            out[piece.at] = self._array(piece)
        return out

    def slices(self) -> Iterator[np.ndarray]:
        """The array in pieces, in the order in which it lies in memory."""
        self.block_until_ready()
        return (self._array(piece) for piece in self._pieces)

    def overwrite(self, read: Callable[[np.ndarray], None]) -> StoredLeaf:
        """Put other values in place.

        Args:
            read: fills the array that it is given with the values that come next, in the order of
                `slices`.
        """
        self.block_until_ready()
        for piece in self._pieces:
            struct = self._store.struct(piece.bundle, self._field, piece.leaf)
            values = np.empty(struct.shape, struct.dtype)
            read(values)
            self._store.write(piece.bundle, self._field, piece.leaf, values)
        return self

    def _array(self, piece: Piece) -> np.ndarray:
        return self._store.leaf(piece.bundle, self._field, piece.leaf)


def stored_params(store: HostStore, bundles: Bundles, shapes: PyTree) -> PyTree:
    """The weights as the tree of the model's parameters, whatever its bundles are."""
    pieces: dict[str, list[Piece]] = {}
    for bundle, tree in enumerate(bundles):
        for leaf, part in enumerate(jax.tree.leaves(tree)):
            pieces.setdefault(part.path, []).append(Piece(bundle, leaf, part.index))

    leaf_of = lambda path, shape: StoredLeaf(store, "weights", shape.shape, pieces[path])
    return map_named(leaf_of, shapes)


def stored_states(store: HostStore, bundles: Bundles) -> tuple[PyTree, PyTree]:
    """(states of the layers, those of the rest): bundles that are alike are stacked; a tuple of
    such stacks where bundles differ."""
    *layers, (rest,) = kinds(bundles)
    stacks = tuple(stacked(store, "state", alike) for alike in layers)
    tree = store.tree(rest, "state")
    single = [
        StoredLeaf(store, "state", x.shape, [Piece(rest, i, ())])
        for i, x in enumerate(jax.tree.leaves(tree))
    ]
    return stacks[0] if len(stacks) == 1 else stacks, jax.tree.unflatten(
        jax.tree.structure(tree), single
    )


def stacked(store: HostStore, field: str, bundles: Sequence[int]) -> PyTree:
    """The tree of a field of bundles that are alike, with a leading axis of bundles."""
    leaves, structure = jax.tree.flatten(store.tree(bundles[0], field))
    count = len(bundles)
    return structure.unflatten(
        [
            StoredLeaf(
                store,
                field,
                (count, *x.shape),
                [Piece(bundle, leaf, (row,)) for row, bundle in enumerate(bundles)],
            )
            for leaf, x in enumerate(leaves)
        ]
    )
