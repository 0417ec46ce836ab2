"""A decoder in three parts, for training that walks its layers one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jax import Array

from springroll.models.decoder import Decoder, Params


@dataclass(frozen=True)
class DecoderStages:
    """The parts of which `model.loss` is made; only `block` looks at a layer."""

    model: Decoder

    def embed(self, params: Params, tokens: Array) -> Array:
        """tokens (batch, time) -> x (batch, time, D)."""
        return self.model.embed(params, tokens)

    def block(self, layer: Params, x: Array, index: Array) -> tuple[Array, Any]:
        """(one layer, x, its index () int32) -> (x, statistics)."""
        windows = self.model.windows(x.shape[1])
        return self.model.block(layer, x, None, None if windows is None else windows[index])

    def finish(
        self, params: Params, x: Array, stats: Any, tokens: Array
    ) -> tuple[Array, dict[str, Array]]:
        """(params, x, stacked statistics, tokens (batch, time + 1)) -> (loss, metrics)."""
        return self.model.finish(params, x, stats, tokens)


def stages(model: Decoder) -> DecoderStages:
    """The decoder for `sr.layerwise`."""
    return DecoderStages(model)
