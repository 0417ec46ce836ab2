"""The shape of an RWKV-7 as the `config.json` of flash-linear-attention's folders, and back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from springroll.errors import InputError
from springroll.models.rwkv7_config import RWKV7Config

# What the format can say and this model is not; other values are refused.
_FIXED: dict[str, Any] = {
    "attn": None,  # layers of attention in between
    "norm_first": True,
    "norm_bias": True,
    "hidden_act": "sqrelu",
    "tie_word_embeddings": False,
}


def fla_config(values: Mapping[str, Any], where: str = "config.json") -> RWKV7Config:
    """The configuration that the keys of a `config.json` describe.

    Raises:
        InputError: a setting that this model has not, or a missing key.
    """
    for name, expected in _FIXED.items():
        if values.get(name, expected) != expected:
            raise InputError(f"{where}: {name} {values[name]!r} is not supported, only {expected}")
    try:
        hidden, layers = values["hidden_size"], values["num_hidden_layers"]
        if any(width != hidden for width in values.get("value_dim") or ()):
            raise InputError(f"{where}: values of another width than the model are not supported")
        heads = values.get("num_heads")
        head_dim = values.get("head_dim") or (hidden // heads if heads else 64)
        eps = values.get("norm_eps", 1e-5)
        return RWKV7Config(
            vocab=values["vocab_size"],
            hidden=hidden,
            layers=layers,
            ffn=values.get("intermediate_size") or _ffn(hidden, values.get("hidden_ratio")),
            head_dim=head_dim,
            decay_rank=values["decay_low_rank_dim"],
            a_rank=values["a_low_rank_dim"],
            v_rank=values["v_low_rank_dim"],
            gate_rank=values["gate_low_rank_dim"],
            norm_eps=eps,
            group_eps=head_dim * eps,
        )
    except KeyError as missing:
        raise InputError(f"{where}: the key {missing} is missing") from None
    except TypeError as error:
        raise InputError(f"{where}: a value is of another type than expected ({error})") from None


def fla_json(
    config: RWKV7Config, dtype: str = "bfloat16", like: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The `config.json` of a model, with which transformers and flash-linear-attention load it.

    Args:
        dtype: of the tensors, "bfloat16" or "float32".
        like: the `config.json` of a model of the same shape, to be taken over.

    Raises:
        InputError: `like` is another model; or the epsilon of the heads' norm is not that of the
            token norms times the width of a head, which is all the format can say.
    """
    if like is not None:
        other = fla_config(like)
        for field in dataclasses.fields(config):
            if not _same(getattr(config, field.name), getattr(other, field.name)):
                raise InputError(
                    f"the folder to write is another model than `like`: {field.name} differs"
                )
        return {k: v for k, v in like.items() if k != "dtype"} | {"torch_dtype": dtype}
    if not _same(config.group_eps, config.head_dim * config.norm_eps):
        raise InputError(
            "Hugging Face's format has no name for this model: it takes group_eps to be head_dim "
            f"* norm_eps = {config.head_dim * config.norm_eps:g}, not {config.group_eps:g}"
        )
    return {
        "architectures": ["RWKV7ForCausalLM"],
        "model_type": "rwkv7",
        "vocab_size": config.vocab,
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "head_dim": config.head_dim,
        "num_heads": config.heads,
        "intermediate_size": config.ffn,
        "hidden_ratio": config.ffn / config.hidden,
        "decay_low_rank_dim": config.decay_rank,
        "a_low_rank_dim": config.a_rank,
        "v_low_rank_dim": config.v_rank,
        "gate_low_rank_dim": config.gate_rank,
        "norm_eps": config.norm_eps,
        "value_dim": [config.hidden] * config.layers,
        "attn_mode": "chunk",
        "fuse_norm": False,
        "max_position_embeddings": 4096,  # read by no computation
        "bos_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": dtype,
        **_FIXED,
    }


def _ffn(hidden: int, ratio: float | None) -> int:
    """The format's width where none is said: a multiple of 32."""
    return -(-int(hidden * (ratio or 4)) // 32) * 32


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-6)
