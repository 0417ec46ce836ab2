"""Layers in files that are only read: weights that need no host memory of their own.

The system reads pages when a layer is sent and may drop them when memory is short, so a model of
any size is evolved from a disk. Steps are not written back; see
`springroll.stream.streamed_population`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from springroll.models.decoder import Decoder, decoder
from springroll.models.hf.load import open_hf, read_layer, read_rest
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


def mapped_model(folder: str | Path) -> tuple[Decoder, MappedStore]:
    """The model of a Hugging Face folder, its layers left in the files.

    Raises:
        InputError: what is wrong with the folder, before any weight is read.
    """
    checkpoint = open_hf(folder)
    layer = lambda index: read_layer(checkpoint, index)
    store = MappedStore(read_rest(checkpoint), layer, checkpoint.config.layers)
    return decoder(checkpoint.config), store
