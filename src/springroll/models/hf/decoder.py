"""Decoders in Hugging Face folders: the names of their tensors.

The shape of a decoder as a Hugging Face `config.json`: the inverse of `hf_config`.

The inverse is not computed but found: each family's way to write the shape is read back with
`hf_config`, and the one that says the same is taken.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from springroll.errors import InputError
from springroll.models.decoder import decoder
from springroll.models.decoder_config import DecoderConfig, shapes
from springroll.models.hf.config import hf_config
from springroll.models.hf.family import Family, Naming, Stored
from springroll.models.rope import Llama3Scaling, YarnScaling

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "olmoe": "OlmoeForCausalLM",
}
_OF_TRAINING = {"switch_loss": 0.0, "z_loss": 0.0, "init_std": 0.0}  # no part of the model


def config_json(
    config: DecoderConfig, dtype: str = "bfloat16", like: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The `config.json` of a model.

    `max_position_embeddings`, which no computation reads, is what the rope scaling was made for, or
    4096.

    Args:
        dtype: of the tensors, "bfloat16" or "float32".
        like: the `config.json` of a model of the same shape, to be taken over.

    Raises:
        InputError: `like` is another model; or no family that `hf_config` knows is this model, and
            what the nearest lacks.
    """
    if like is not None:
        others = _differences(config, hf_config(like))
        if others:
            raise InputError(
                f"the folder to write is another model than `like`: {others[0]} differs"
            )
        return {k: v for k, v in like.items() if k != "dtype"} | {"torch_dtype": dtype}
    lacks: dict[str, list[str]] = {}
    for family in ARCHITECTURES:
        if (family in ("qwen3_moe", "olmoe")) != (config.experts > 0):
            continue
        values = _values(config, family, dtype)
        lacks[family] = _differences(config, hf_config(values))
        if not lacks[family]:
            return values
    nearest = min(lacks, key=lambda family: len(lacks[family]))
    wanted = ", ".join(f"{name}={getattr(config, name)!r}" for name in lacks[nearest])
    raise InputError(
        f"Hugging Face's format has no name for this model: {nearest}, the nearest, has no {wanted}"
    )


def _differences(ours: DecoderConfig, theirs: DecoderConfig) -> list[str]:
    ours, theirs = (dataclasses.replace(c, **_OF_TRAINING) for c in (ours, theirs))
    names = (field.name for field in dataclasses.fields(ours))
    return [name for name in names if getattr(ours, name) != getattr(theirs, name)]


def _values(c: DecoderConfig, family: str, dtype: str) -> dict[str, Any]:
    values: dict[str, Any] = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "vocab_size": c.vocab,
        "hidden_size": c.hidden,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "intermediate_size": c.ffn,
        "hidden_act": "silu",
        "rms_norm_eps": c.norm_eps,
        "tie_word_embeddings": c.tied,
        "initializer_range": c.init_std,
        "attention_bias": c.o_bias,
        "max_position_embeddings": _context(c),
        "rope_theta": c.rope_theta,
        "torch_dtype": dtype,
    }
    if c.rope_scaling is not None:
        values["rope_scaling"] = _scaling(c.rope_scaling)
    if c.experts:
        values |= {
            "num_experts": c.experts,
            "num_experts_per_tok": c.top_k,
            "norm_topk_prob": c.renormalise,
            "router_aux_loss_coef": c.switch_loss,
        }
    if family == "qwen3_moe":
        values |= {"moe_intermediate_size": c.ffn, "decoder_sparse_step": 1, "mlp_only_layers": []}
    return values


def _context(c: DecoderConfig) -> int:
    scaling = c.rope_scaling
    return 4096 if scaling is None else int(scaling.factor * scaling.original_length)


def _scaling(scaling: Llama3Scaling | YarnScaling) -> dict[str, Any]:
    kept = {"factor": scaling.factor, "original_max_position_embeddings": scaling.original_length}
    if isinstance(scaling, Llama3Scaling):
        return kept | {
            "rope_type": "llama3",
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
        }
    return kept | {
        "rope_type": "yarn",
        "beta_fast": scaling.beta_fast,
        "beta_slow": scaling.beta_slow,
        "truncate": scaling.truncate,
    }


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
