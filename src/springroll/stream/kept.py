"""Leaves of a store as a checkpoint sees them: stacked over the layers, read and written in place.

A leaf knows its shape and type without holding a byte. Read with `np.asarray`, it waits until its
bundles are settled and stacks them, so that one leaf is alive beside the store; `overwrite` puts
values back where they belong.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from springroll.stream.store import HostStore


class Kept:
    """Leaf number `leaf` of a field of these bundles, with a leading axis of bundles, or of the
    one bundle that is given as a number."""

    def __init__(self, store: HostStore, field: str, leaf: int, bundles: Sequence[int] | int):
        self._store, self._field, self._leaf = store, field, leaf
        self._bundles, self._one = bundles, isinstance(bundles, int)
        first = self._array(bundles if isinstance(bundles, int) else bundles[0])
        self.dtype = np.dtype(first.dtype)
        self.shape = first.shape if isinstance(bundles, int) else (len(bundles), *first.shape)
        self.size = int(np.prod(self.shape))
        self.ndim = len(self.shape)

    def block_until_ready(self) -> "Kept":
        """What `jax.block_until_ready` calls."""
        self._store.settle()
        return self

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        self.block_until_ready()
        if isinstance(self._bundles, int):
            return np.array(self._array(self._bundles), dtype)
        out = np.empty(self.shape, dtype or self.dtype)
        for row, bundle in enumerate(self._bundles):
            out[row] = self._array(bundle)
        return out

    def overwrite(self, values: np.ndarray) -> "Kept":
        """Put values of the same shape in place."""
        self.block_until_ready()
        bundles = [self._bundles] if isinstance(self._bundles, int) else self._bundles
        for bundle, row in zip(bundles, values[None] if self._one else values, strict=True):
            self._store.write(bundle, self._field, self._leaf, row)
        return self

    def _array(self, bundle: int) -> Any:
        return self._store.leaf(bundle, self._field, self._leaf)


def kept(store: HostStore, field: str, layers: int) -> tuple[Any, Any]:
    """(leaves of the layers, stacked; leaves of the rest) of a field."""

    def of(bundles: Sequence[int] | int, like: int) -> Any:
        tree = store.tree(like, field)
        structure = jax.tree.structure(tree)
        count = structure.num_leaves
        return structure.unflatten([Kept(store, field, i, bundles) for i in range(count)])

    return of(range(layers), 0), of(layers, layers)
