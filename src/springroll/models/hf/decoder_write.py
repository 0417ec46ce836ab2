"""The `config.json` of a decoder.

It is found by trial: each family's way to write the shape is read back with `hf_config`, and the
first that gives the same shape is taken.
"""

import dataclasses

from springroll.atomic import JsonObject
from springroll.errors import InputError
from springroll.models.decoder_config import DecoderConfig
from springroll.models.hf.decoder_read import FULL, SLIDING, hf_config
from springroll.models.hf.decoder_rope import rope_json
from springroll.models.hf.family import taken_over

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
}
_OF_EXPERTS = ("qwen3_moe", "olmoe", "mixtral", "gpt_oss")
_OF_TRAINING = {"switch_loss": 0.0, "z_loss": 0.0, "init_std": 0.0}  # no part of the model


def config_json(
    config: DecoderConfig, dtype: str = "bfloat16", like: JsonObject | None = None
) -> JsonObject:
    """The `config.json` of a model.

    Args:
        dtype: of the tensors, "bfloat16" or "float32".
        like: the `config.json` of a model of the same shape, to be taken over.

    Raises:
        InputError: `like` is another model; or no family that `hf_config` knows is this model, and
            what the nearest lacks.
    """
    if like is not None:
        return taken_over(like, _differences(config, hf_config(like)), dtype)
    lacks: dict[str, list[str]] = {}
    for family in ARCHITECTURES:
        if (family in _OF_EXPERTS) != (config.experts > 0):
            continue
        values = _values(config, family, dtype)
        try:
            lacks[family] = _differences(config, hf_config(values))
        except InputError:  # the family has nothing of the kind
            continue
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
        **rope_json(c),
        "torch_dtype": dtype,
    }
    if c.experts:
        number = "num_experts" if family in ("qwen3_moe", "olmoe") else "num_local_experts"
        values |= {
            number: c.experts,
            "num_experts_per_tok": c.top_k,
            "router_aux_loss_coef": c.switch_loss,
        }
        if number == "num_experts":
            values["norm_topk_prob"] = c.renormalise
    return values | _of_family(c, family)


def _of_family(c: DecoderConfig, family: str) -> JsonObject:
    window: JsonObject = {"sliding_window": c.window or None}
    kinds = {"layer_types": [SLIDING if window else FULL for window in c.windows]}
    if family in ("mistral", "mixtral", "phi3"):
        return window
    if family in ("qwen2", "qwen3") and c.window:
        return {"use_sliding_window": True, "max_window_layers": 0, **window, **kinds}
    if family == "qwen3_moe":
        used = {"use_sliding_window": True, **window} if c.window else {}
        moe = {"moe_intermediate_size": c.ffn, "decoder_sparse_step": 1, "mlp_only_layers": []}
        return {**moe, **used}
    if family == "smollm3":
        turns = [int(rope is not None) for rope in c.ropes]
        used = {"use_sliding_window": bool(c.window), **window, **kinds}
        return {"no_rope_layers": turns, **used}
    if family == "gpt_oss":
        return {"swiglu_limit": c.swiglu_limit, **window, **kinds}
    if family in ("gemma2", "gemma3_text"):
        return {
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": _whole(c.query_scale),
            "final_logit_softcapping": c.logit_cap or None,
            "attn_logit_softcapping": c.score_cap or None,
            **window,
            **kinds,
        }
    return {}


def _whole(number: float) -> int | float:
    return int(number) if number == int(number) else number
