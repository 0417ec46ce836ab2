"""What a GGUF file says of its model, as the `config.json` of a Hugging Face folder.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; for the factors of Llama 3's rope
convert_hf_to_gguf.py of https://github.com/ggml-org/llama.cpp.
"""

import math
from typing import Any

import numpy as np

from springroll.atomic import JsonObject
from springroll.errors import InputError, brief
from springroll.gguf.header import Header

ARCHITECTURES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "qwen3moe": ("qwen3_moe", "Qwen3MoeForCausalLM"),
    "olmoe": ("olmoe", "OlmoeForCausalLM"),
}
_RENORMALISE = ("qwen3moe",)  # what llama.cpp does, and no key says
_ROPE_FACTORS = "rope_freqs.weight"
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_TOKENS = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
_LLAMA3_LENGTH = 8192  # that all Llama 3 were trained for at first


def config_json(header: Header) -> JsonObject:
    """The `config.json` of the model in a file.

    Raises:
        InputError: an architecture, a rope scaling or a setting that is not known; a key that is
            missing or of another type.
    """
    name = header.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise InputError(
            f"{header.path}: general.architecture is {brief(name)}; known are "
            f"{', '.join(ARCHITECTURES)}"
        )
    said = _Keys(header, name)
    experts = said.get("expert_count") or 0
    if name == "llama" and experts:
        raise InputError(f"{header.path}: a llama with experts (Mixtral) is not supported")
    family, architecture = ARCHITECTURES[name]
    heads, hidden = said.whole("attention.head_count"), said.whole("embedding_length")
    head_dim = said.whole("attention.key_length", max(hidden // heads, 1))
    for key in ("rope.dimension_count", "attention.value_length"):
        if said.whole(key, head_dim) != head_dim:
            raise InputError(f"{header.path}: {name}.{key} other than {head_dim} is not supported")
    if said.get("attention.sliding_window"):
        raise InputError(f"{header.path}: attention within a sliding window is not supported")
    values: JsonObject = {
        "architectures": [architecture],
        "model_type": family,
        "vocab_size": _rows(header, "token_embd.weight"),
        "hidden_size": hidden,
        "num_hidden_layers": said.whole("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": said.whole("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "intermediate_size": said.whole("feed_forward_length", 4 * hidden),
        "hidden_act": "silu",
        "rms_norm_eps": said.number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "attention_bias": name != "qwen2" and "blk.0.attn_q.bias" in header.tensors,
        "max_position_embeddings": said.whole("context_length"),
        "rope_theta": said.number("rope.freq_base", 10000.0),
        "torch_dtype": "bfloat16",
    }
    values |= _scaling(said, values)
    if experts:
        values |= {
            "num_experts": experts,
            "num_experts_per_tok": said.whole("expert_used_count"),
            "norm_topk_prob": name in _RENORMALISE,
        }
        ffn = said.whole("expert_feed_forward_length", values["intermediate_size"])
        values |= {"moe_intermediate_size" if name == "qwen3moe" else "intermediate_size": ffn}
    return values | _ends(header)


class _Keys:
    """The metadata of an architecture."""

    def __init__(self, header: Header, name: str) -> None:
        self.header, self.name = header, name

    def get(self, key: str) -> Any:
        return self.header.metadata.get(f"{self.name}.{key}")

    def whole(self, key: str, default: int | None = None) -> int:
        return self._checked(key, default, (int,))

    def number(self, key: str, default: float | None = None) -> float:
        # Floats there have 32 bits: 1e-5 in the shortest digits that stand for the same one.
        value = self._checked(key, default, (int, float))
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def _checked(self, key: str, default: Any, kinds: tuple[type, ...]) -> Any:
        value = self.get(key)
        value = default if value is None else value
        if value is None:
            raise InputError(f"{self.header.path}: the key {self.name}.{key} is missing")
        if type(value) not in kinds or not 0 < value < math.inf:
            raise InputError(
                f"{self.header.path}: {self.name}.{key} is {brief(value)}; expected one "
                f"{'whole ' if kinds == (int,) else ''}number above 0"
            )
        return value


def _rows(header: Header, name: str) -> int:
    if name not in header.tensors:
        raise InputError(f"{header.path}: the tensor {name} is missing")
    return header.tensors[name].shape[0]


def _scaling(said: _Keys, values: JsonObject) -> JsonObject:
    """The key `rope_scaling`, if positions are scaled."""
    header = said.header
    if _ROPE_FACTORS in header.tensors:
        return {"rope_scaling": _llama3(header, values)}
    kind = said.get("rope.scaling.type")
    if kind in (None, "none"):
        return {}
    if kind not in ("linear", "yarn"):
        raise InputError(f"{header.path}: the rope scaling {brief(kind)} is not supported")
    scaling = {"rope_type": kind, "factor": said.number("rope.scaling.factor")}
    if kind == "yarn":
        trained = said.whole("rope.scaling.original_context_length")
        scaling["original_max_position_embeddings"] = trained
        for key in ("attn_factor", "yarn_ext_factor", "yarn_attn_factor", "yarn_log_multiplier"):
            if said.get(f"rope.scaling.{key}") is not None:
                raise InputError(f"{header.path}: {said.name}.rope.scaling.{key} is not supported")
        for key in ("beta_fast", "beta_slow"):
            if said.get(f"rope.scaling.yarn_{key}") is not None:
                scaling[key] = said.number(f"rope.scaling.yarn_{key}")
    return {"rope_scaling": scaling}


def _llama3(header: Header, values: JsonObject) -> JsonObject:
    """The scaling of Llama 3 whose factors, one for each frequency, the file holds."""
    entry, width = header.tensors[_ROPE_FACTORS], values["head_dim"]
    if entry.shape == (width // 2,) and entry.end - entry.begin == 4 * entry.shape[0]:
        found = header.content[entry.begin : entry.end].view(np.float32)
        factor = float(found.max())
        if 1.0 <= factor < math.inf and np.allclose(
            found, _llama3_factors(factor, width, values["rope_theta"]), rtol=1e-4
        ):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "original_max_position_embeddings": _LLAMA3_LENGTH,
                **_LLAMA3,
            }
    raise InputError(
        f"{header.path}: the factors of its rope ({_ROPE_FACTORS}) are not those of a Llama 3"
    )


def _llama3_factors(factor: float, width: int, theta: float) -> np.ndarray:
    low, high = _LLAMA3.values()
    turns = _LLAMA3_LENGTH / (2 * np.pi * theta ** (np.arange(0, width, 2) / width))
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1.0 - smooth) / factor + smooth)


def _ends(header: Header) -> JsonObject:
    """The numbers of tokens with a meaning."""
    said = {
        key: header.metadata.get(f"tokenizer.ggml.{name}_token_id") for name, key in _TOKENS.items()
    }
    return {key: number for key, number in said.items() if type(number) is int}
