"""Layers in files that are only read: weights that need no host memory of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from springroll.stream.store import Fields


class MappedStore:
    """A model whose layers are views of memory-mapped files.

    Args:
        rest: parameters outside the layers.
        layer: index -> the weights of that layer, arrays without a layer axis.
        layers: how many.
        stack: where in the parameters layers are.
    """

    def __init__(
        self, rest: dict[str, Any], layer: Callable[[int], Any], layers: int, stack: str = "layers"
    ):
        self._rest, self._layer, self._layers, self._stack = rest, layer, layers, stack

    @property
    def bundles(self) -> int:
        return self._layers

    @property
    def params(self) -> dict[str, Any]:
        """The rest as it is, and the stacked layers as shapes."""
        stacked = lambda x: jax.ShapeDtypeStruct((self._layers, *x.shape), x.dtype)
        return self._rest | {self._stack: jax.tree.map(stacked, self._layer(0))}

    def arrays(self, bundle: int, fields: Sequence[str]) -> Fields:
        """Weights as they lie in the file; a layer has no other state."""
        there: Fields = {"weights": self._layer(bundle), "state": {}}
        return {name: there[name] for name in fields}

    def resident(self, bundle: int) -> bool:
        return False
