"""Decoders in Hugging Face folders: `config.json`, read and written, and the names of tensors.

A `config.json` is read as the shape of a decoder, and what the decoder lacks is refused. The
inverse is found by trial: each family's way to write the shape is read back with `hf_config`, and
the one that gives the same shape is taken.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator

from springroll.atomic import JsonObject
from springroll.errors import InputError
from springroll.models.decoder import decoder
from springroll.models.decoder_config import DecoderConfig, shapes
from springroll.models.hf.family import Family, Naming, Stored
from springroll.models.rope import Llama3Scaling, RopeScaling, YarnScaling

FAMILIES: dict[str, Callable[[JsonObject], JsonObject]] = {
    "llama": lambda c: _biases(c),
    "qwen2": lambda c: {"qkv_bias": True},
    "qwen3": lambda c: {"qk_norm": "head", **_biases(c)},
    "qwen3_moe": lambda c: {
        "qk_norm": "head",
        **_biases(c),
        **_experts(c, c["moe_intermediate_size"]),
    },
    "olmoe": lambda c: {"qk_norm": "whole", **_biases(c), **_experts(c, c["intermediate_size"])},
}


def hf_config(values: JsonObject, where: str = "config.json") -> DecoderConfig:
    """The configuration that the keys of a `config.json` describe, in its old and new spelling.

    Raises:
        InputError: another architecture, an unknown rope type, a sliding window, a missing key.
    """
    family = values.get("model_type")
    if family not in FAMILIES:
        raise InputError(f"{where}: model_type is {family!r}; known are {', '.join(FAMILIES)}")
    _refuse_others(values, str(family), where)
    try:
        heads = values["num_attention_heads"]
        fields: JsonObject = {
            "vocab": values["vocab_size"],
            "hidden": values["hidden_size"],
            "layers": values["num_hidden_layers"],
            "heads": heads,
            "kv_heads": values.get("num_key_value_heads") or heads,
            "head_dim": values.get("head_dim") or values["hidden_size"] // heads,
            "ffn": values["intermediate_size"],
            "norm_eps": values.get("rms_norm_eps", 1e-6),
            "tied": values.get("tie_word_embeddings", False),
            "init_std": values.get("initializer_range", 0.02),
        }
        return DecoderConfig(**(fields | _rope(values, where) | FAMILIES[family](values)))
    except KeyError as missing:
        raise InputError(f"{where}: the key {missing} is missing") from None
    except TypeError as error:
        raise InputError(f"{where}: a value is of another type than expected ({error})") from None


def _refuse_others(values: JsonObject, family: str, where: str) -> None:
    """Raise InputError for settings of a family that this decoder has not."""
    windows = {"sliding_attention", "chunked_attention"} & set(values.get("layer_types") or ())
    if values.get("use_sliding_window") or windows:
        raise InputError(f"{where}: attention within a sliding window is not supported")
    if family == "llama" and values.get("sliding_window") is not None:
        raise InputError(f"{where}: attention within a sliding window is not supported")
    if family == "qwen3_moe" and (
        values.get("mlp_only_layers") or values.get("decoder_sparse_step", 1) != 1
    ):
        raise InputError(f"{where}: layers with and without experts in turns are not supported")
    for name, only in (("mlp_bias", False), ("clip_qkv", None), ("hidden_act", "silu")):
        if (values.get(name, only) or None) != (only or None):
            raise InputError(f"{where}: {name} {values[name]!r} is not supported, only {only}")


def _biases(values: JsonObject) -> JsonObject:
    """`attention_bias` is of all four matrices (Qwen2 has its own rule)."""
    return dict.fromkeys(("qkv_bias", "o_bias"), bool(values.get("attention_bias", False)))


def _experts(values: JsonObject, ffn: int) -> JsonObject:
    return {
        # transformers 5 writes the second for Qwen3-MoE, though all its folders have the first.
        "experts": values.get("num_experts") or values["num_local_experts"],
        "top_k": values["num_experts_per_tok"],
        "renormalise": values.get("norm_topk_prob", False),
        "ffn": ffn,
    }


def _rope(values: JsonObject, where: str) -> JsonObject:
    """Base and scaling: `rope_parameters`, or before transformers 5 `rope_theta` and
    `rope_scaling`."""
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    theta = rope.get("rope_theta", values.get("rope_theta", 10000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    length: int = rope.get("original_max_position_embeddings") or values.get(
        "max_position_embeddings", 0
    )
    if rope.get("partial_rotary_factor", values.get("partial_rotary_factor", 1.0)) != 1.0:
        raise InputError(f"{where}: partial_rotary_factor, other than 1, is not supported")
    scaling: RopeScaling | None
    if kind == "default":
        scaling = None
    elif kind == "llama3":
        scaling = Llama3Scaling(
            factor=rope["factor"],
            low_freq_factor=rope["low_freq_factor"],
            high_freq_factor=rope["high_freq_factor"],
            original_length=length,
        )
    elif kind == "yarn" and not {"mscale", "attention_factor"} & {k for k in rope if rope[k]}:
        scaling = YarnScaling(
            factor=rope["factor"],
            beta_fast=rope.get("beta_fast") or 32.0,
            beta_slow=rope.get("beta_slow") or 1.0,
            original_length=length,
            truncate=rope.get("truncate", True),
        )
    else:
        raise InputError(f"{where}: rope type {kind!r}, with these settings, is not supported")
    return {"rope_theta": float(theta), "rope_scaling": scaling}


ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "olmoe": "OlmoeForCausalLM",
}
_OF_TRAINING = {"switch_loss": 0.0, "z_loss": 0.0, "init_std": 0.0}  # no part of the model


def config_json(
    config: DecoderConfig, dtype: str = "bfloat16", like: JsonObject | None = None
) -> JsonObject:
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


def _values(c: DecoderConfig, family: str, dtype: str) -> JsonObject:
    values: JsonObject = {
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


def _scaling(scaling: Llama3Scaling | YarnScaling) -> JsonObject:
    shared = {"factor": scaling.factor, "original_max_position_embeddings": scaling.original_length}
    if isinstance(scaling, Llama3Scaling):
        return shared | {
            "rope_type": "llama3",
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
        }
    return shared | {
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
