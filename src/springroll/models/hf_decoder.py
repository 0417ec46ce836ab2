"""Decoders in Hugging Face folders: the names of their tensors."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from springroll.models.decoder import decoder
from springroll.models.decoder_config import DecoderConfig
from springroll.models.decoder_shapes import shapes
from springroll.models.hf_config import hf_config
from springroll.models.hf_config_write import config_json
from springroll.models.hf_family import Family, Naming, Stored


def checkpoint_names(
    path: str, shape: tuple[int, ...], layer: int | None = None
) -> Iterator[tuple[tuple[int, ...], str]]:
    """(index into the stacks, name in the checkpoint) of every tensor of a leaf, or of one layer's.

    `shape` is that of the whole leaf.
    """
    *inside, leaf = path.split("/")
    stem, kind = leaf, ".weight"
    if leaf == "e_score_correction_bias":
        stem, kind = f"gate.{leaf}", ""
    elif leaf.endswith("_bias"):
        stem, kind = leaf.removesuffix("bias") + "proj", ".bias"
    if not inside:
        yield (), stem + kind if leaf == "lm_head" else f"model.{stem}{kind}"
        return
    layers = range(shape[0]) if layer is None else (layer,)
    experts = [range(shape[1])] if "experts" in inside else []
    for index in itertools.product(layers, *experts):
        parts = ["model.layers", str(index[0]), *inside[1:], *map(str, index[1:])]
        yield index, ".".join([*parts, stem]) + kind


def _stored(
    config: DecoderConfig, path: str, shape: tuple[int, ...], layer: int | None
) -> Iterator[Stored]:
    for index, name in checkpoint_names(path, shape, layer):
        yield Stored(index, name, shape[len(index) :])


DECODER = Family(
    config=DecoderConfig,
    model=decoder,
    shapes=shapes,
    # The head of tied models; a table of old checkpoints.
    naming=Naming(_stored, unread=("lm_head.weight", "rotary_emb.inv_freq")),
    read=hf_config,
    write=config_json,
)
