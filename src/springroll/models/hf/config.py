"""A Hugging Face `config.json` as the shape of a decoder; what the decoder lacks is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from springroll.errors import InputError
from springroll.models.decoder_config import DecoderConfig
from springroll.models.rope import Llama3Scaling, RopeScaling, YarnScaling

Values = Mapping[str, Any]

FAMILIES: dict[str, Callable[[Values], dict[str, Any]]] = {
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


def hf_config(values: Values, where: str = "config.json") -> DecoderConfig:
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
        fields: dict[str, Any] = {
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


def _refuse_others(values: Values, family: str, where: str) -> None:
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


def _biases(values: Values) -> dict[str, Any]:
    """`attention_bias` is of all four matrices (Qwen2 has its own rule)."""
    return dict.fromkeys(("qkv_bias", "o_bias"), bool(values.get("attention_bias", False)))


def _experts(values: Values, ffn: int) -> dict[str, Any]:
    return {
        # transformers 5 writes the second for Qwen3-MoE, though all its folders have the first.
        "experts": values.get("num_experts") or values["num_local_experts"],
        "top_k": values["num_experts_per_tok"],
        "renormalise": values.get("norm_topk_prob", False),
        "ffn": ffn,
    }


def _rope(values: Values, where: str) -> dict[str, Any]:
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
