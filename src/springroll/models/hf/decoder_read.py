"""The shape of a decoder from a `config.json`. What the decoder lacks is refused by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from springroll.atomic import JsonObject
from springroll.errors import InputError, brief
from springroll.models.config_checks import MOST_STACKED
from springroll.models.decoder_config import DecoderConfig
from springroll.models.hf.config_values import Values
from springroll.models.hf.decoder_rope import rope_fields, split_rope_fields

Fields = Callable[[Values], JsonObject]
SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Described:
    """A `model_type`: what its keys mean.

    `fields` are those of the configuration that not all families share. `defaults` are values of
    keys that a `config.json` may leave out, where they are others than those of a Llama.
    """

    fields: Fields
    defaults: JsonObject = field(default_factory=dict)


def hf_config(values: JsonObject, where: str = "config.json") -> DecoderConfig:
    """The configuration that the keys of a `config.json` describe, in its old and new spelling.

    Raises:
        InputError: another architecture, an unknown rope type, kind of attention or activation; a
            key that is missing, of another type, or out of range.
    """
    family = values.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise InputError(f"{where}: model_type is {brief(family)}; known are {', '.join(FAMILIES)}")
    said = Values(FAMILIES[family].defaults | values, where)
    _refuse_others(said)
    heads, hidden = said.whole("num_attention_heads"), said.whole("hidden_size")
    fields: JsonObject = {
        "vocab": said.whole("vocab_size"),
        "hidden": hidden,
        "layers": said.whole("num_hidden_layers", most=MOST_STACKED),
        "heads": heads,
        "kv_heads": said.whole("num_key_value_heads", heads),
        "head_dim": said.whole("head_dim", max(hidden // heads, 1)),
        "ffn": said.whole("intermediate_size"),
        "norm_eps": said.number("rms_norm_eps", 1e-6),
        "tied": said.flag("tie_word_embeddings"),
        "init_std": said.number("initializer_range", 0.02),
    }
    try:
        return DecoderConfig(**(fields | FAMILIES[family].fields(said)))
    except InputError as error:
        line = str(error)
        raise InputError(line if line.startswith(where) else f"{where}: {line}") from None


def _refuse_others(said: Values) -> None:
    """Raise InputError for settings that change what a model computes and that no decoder has."""
    if said.get("mlp_only_layers") or said.get("decoder_sparse_step") not in (None, 1):
        raise InputError(
            f"{said.where}: layers with and without experts in turns are not supported"
        )
    for name, only in (
        ("mlp_bias", False),
        ("clip_qkv", None),
        ("use_bidirectional_attention", False),
    ):
        given = said.get(name)
        if given and given != only:
            raise InputError(f"{said.where}: {name} {brief(given)} is not supported, only {only}")


def _activation(said: Values, name: str, only: str) -> None:
    given = said.get(name)
    if given is not None and given != only:
        raise InputError(f"{said.where}: {name} {brief(given)} is not supported, only {only}")


def _silu(said: Values) -> JsonObject:
    _activation(said, "hidden_act", "silu")
    return rope_fields(said)


def _biases(said: Values) -> JsonObject:
    """`attention_bias` is of all four matrices (Qwen2 has its own rule)."""
    return dict.fromkeys(("qkv_bias", "o_bias"), said.flag("attention_bias"))


def _experts(said: Values, ffn: str, renormalise: bool | None = None) -> JsonObject:
    # transformers 5 writes the second for Qwen3-MoE, though all its folders have the first.
    name = "num_local_experts" if said.get("num_experts") is None else "num_experts"
    return {
        "experts": said.whole(name, most=MOST_STACKED),
        "top_k": said.whole("num_experts_per_tok"),
        "renormalise": said.flag("norm_topk_prob") if renormalise is None else renormalise,
        "ffn": said.whole(ffn),
    }


def _windows(said: Values, implied: Callable[[int], bool], fixed: bool = False) -> JsonObject:
    """Which layers see only `sliding_window` tokens: by `layer_types`, or the i-th if implied(i).

    With `fixed`, `layer_types` may say nothing else than what is implied.
    """
    layers = said.whole("num_hidden_layers", most=MOST_STACKED)
    kinds = said.items("layer_types")
    for kind in kinds:
        if kind not in (SLIDING, FULL):
            raise InputError(
                f"{said.where}: layer_types holds {brief(kind)}; supported are {FULL} and {SLIDING}"
            )
    if kinds and len(kinds) != layers:
        raise InputError(
            f"{said.where}: layer_types has {len(kinds)} values; expected {layers}, one for each "
            "layer"
        )
    own = [implied(i) for i in range(layers)]
    flags = [kind == SLIDING for kind in kinds] or own
    if fixed and flags != own:
        raise InputError(
            f"{said.where}: attention within a sliding window is not supported in some layers of "
            f"{said.get('model_type')}, and layer_types says so"
        )
    if not any(flags):
        return {}
    return {"window": said.whole("sliding_window"), "windowed": shortest(flags)}


def _no_windows(said: Values) -> JsonObject:
    """Nothing, or an InputError if layers should see only some tokens."""
    windows = [kind for kind in said.items("layer_types") if kind != FULL]
    given = said.get("sliding_window") is not None and said.get("model_type") == "llama"
    if said.get("use_sliding_window") or given or windows:
        raise InputError(
            f"{said.where}: attention within a sliding window is not supported in "
            f"{said.get('model_type')}"
        )
    return {}


def _all_windows(said: Values) -> JsonObject:
    return _windows(said, lambda i: said.get("sliding_window") is not None, fixed=True)


def _used(said: Values) -> bool:
    return said.flag("use_sliding_window") and said.get("sliding_window") is not None


def _upper_windows(said: Values) -> JsonObject:
    """Qwen2 and Qwen3: the layers from `max_window_layers`, if windows are used at all."""
    used = _used(said)
    start = said.get("max_window_layers") if used else 0
    if type(start) is not int or start < 0:
        raise InputError(
            f"{said.where}: max_window_layers is {brief(start)}; expected a whole number from 0"
        )
    found = _windows(said, lambda i: used and i >= start)
    if found and not used:
        raise InputError(
            f"{said.where}: layer_types has {SLIDING}, but use_sliding_window is not true"
        )
    return found


def _qwen3_moe_windows(said: Values) -> JsonObject:
    return _windows(said, lambda i: _used(said), fixed=True)


def shortest(flags: Sequence[bool]) -> tuple[bool, ...]:
    """The shortest pattern that, repeated, gives all of them."""
    overlap = [0]  # of every beginning: how much of it is also its end
    for flag in flags[1:]:
        n = overlap[-1]
        while n and flags[n] != flag:
            n = overlap[n - 1]
        overlap.append(n + (flags[n] == flag))
    return tuple(flags[: len(flags) - overlap[-1]])


def _smollm3(said: Values) -> JsonObject:
    layers = said.whole("num_hidden_layers", most=MOST_STACKED)
    turns = said.items("no_rope_layers")
    if not turns:
        every = said.whole("no_rope_layer_interval")
        turns = [int((i + 1) % every != 0) for i in range(layers)]
    if len(turns) != layers or not all(type(x) in (int, bool) and x in (0, 1) for x in turns):
        raise InputError(
            f"{said.where}: no_rope_layers is {brief(turns)}; expected {layers} values, one for "
            "each layer, 1 if its heads turn and 0 if not"
        )
    windows = _windows(said, lambda i: _used(said) and not turns[i])
    if windows and not _used(said):
        windows = {}  # transformers reads layer_types only where use_sliding_window is true
    return {"roped": shortest([bool(x) for x in turns]), **windows, **_biases(said), **_silu(said)}


def _gemma(said: Values) -> JsonObject:
    """What Gemma 2 and 3 share."""
    _activation(said, "hidden_activation", "gelu_pytorch_tanh")
    return {
        "activation": "gelu_tanh",
        "norm_plus_one": True,
        "norms_after": True,
        "embed_scale": True,
        "query_scale": float(said.number("query_pre_attn_scalar")),
        "logit_cap": said.number_or_zero("final_logit_softcapping"),
        **_biases(said),
    }


def _gemma2(said: Values) -> JsonObject:
    cap = said.number_or_zero("attn_logit_softcapping")
    windows = _windows(said, lambda i: i % 2 == 0)
    return {"score_cap": cap, **windows, **_gemma(said), **rope_fields(said)}


def _gemma3(said: Values) -> JsonObject:
    if said.get("attn_logit_softcapping") is not None:
        raise InputError(f"{said.where}: attn_logit_softcapping is not supported in gemma3_text")
    every = said.whole("sliding_window_pattern")
    windows = _windows(said, lambda i: (i + 1) % every != 0)
    return {"qk_norm": "head", **windows, **_gemma(said), **split_rope_fields(said)}


def _gpt_oss(said: Values) -> JsonObject:
    if said.number("swiglu_alpha") != 1.702:
        raise InputError(
            f"{said.where}: swiglu_alpha {said.get('swiglu_alpha')} is not supported, only 1.702"
        )
    if not said.flag("attention_bias"):
        raise InputError(f"{said.where}: attention_bias false is not supported in gpt_oss")
    return {
        **_biases(said),
        **_experts(said, "intermediate_size", renormalise=True),
        "expert_bias": True,
        "sinks": True,
        "swiglu_limit": float(said.number("swiglu_limit")),
        **_windows(said, lambda i: i % 2 == 0),
        **_silu(said),
    }


def _gemma_defaults(**others: Any) -> JsonObject:
    return {
        "head_dim": 256,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        **others,
    }


FAMILIES: dict[str, Described] = {
    "llama": Described(lambda c: {**_no_windows(c), **_biases(c), **_silu(c)}),
    "mistral": Described(
        lambda c: {**_all_windows(c), **_silu(c)},
        {"num_key_value_heads": 8, "sliding_window": 4096},
    ),
    "qwen2": Described(
        lambda c: {"qkv_bias": True, **_upper_windows(c), **_silu(c)},
        {"sliding_window": 4096, "max_window_layers": 28},
    ),
    "qwen3": Described(
        lambda c: {"qk_norm": "head", **_biases(c), **_upper_windows(c), **_silu(c)},
        {"sliding_window": 4096, "max_window_layers": 28},
    ),
    "qwen3_moe": Described(
        lambda c: {
            "qk_norm": "head",
            **_biases(c),
            **_experts(c, "moe_intermediate_size"),
            **_qwen3_moe_windows(c),
            **_silu(c),
        },
        {"sliding_window": 4096},
    ),
    "olmoe": Described(
        lambda c: {
            "qk_norm": "whole",
            **_biases(c),
            **_experts(c, "intermediate_size"),
            **_no_windows(c),
            **_silu(c),
        }
    ),
    "mixtral": Described(
        lambda c: {
            **_experts(c, "intermediate_size", renormalise=True),
            **_all_windows(c),
            **_silu(c),
        },
        {"num_key_value_heads": 8, "rope_theta": 1e6, "rms_norm_eps": 1e-5},
    ),
    "phi3": Described(
        lambda c: {**_all_windows(c), **_silu(c)},
        {
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
        },
    ),
    "smollm3": Described(
        _smollm3,
        {
            "num_key_value_heads": 4,
            "tie_word_embeddings": True,
            "rope_theta": 2e6,
            "no_rope_layer_interval": 4,
        },
    ),
    "gemma2": Described(
        _gemma2,
        _gemma_defaults(final_logit_softcapping=30.0, attn_logit_softcapping=50.0),
    ),
    "gemma3_text": Described(_gemma3, _gemma_defaults(sliding_window_pattern=6)),
    "gpt_oss": Described(
        _gpt_oss,
        {
            "head_dim": 64,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "rope_theta": 150000.0,
            "sliding_window": 128,
            "swiglu_alpha": 1.702,
            "swiglu_limit": 7.0,
            "attention_bias": True,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 32.0,
                "truncate": False,
                "original_max_position_embeddings": 4096,
            },
        },
    ),
}
