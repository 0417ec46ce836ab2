"""A decoder in three parts, for training that walks its layers one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jax import Array

from springroll.errors import InputError
from springroll.models.decoder import Decoder, Params
from springroll.models.language_model import LanguageModel


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


def stages(model: LanguageModel) -> DecoderStages:
    """The decoder for `sr.layerwise` and for streaming.

    Raises:
        InputError: the model is no decoder.
    """
    if not isinstance(model, Decoder):
        raise InputError(
            f"an {type(model).__name__} cannot be walked layer by layer; leave out --layerwise and "
            "--engine stream, or take a smaller model"
        )
    return DecoderStages(model)
