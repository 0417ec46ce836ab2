"""Tiny GGUF files, written by the package `gguf` as llama.cpp's converter does."""

import gguf
import numpy as np

from springroll.gguf.config import ARCHITECTURES
from springroll.gguf.tensors import _OF_EXPERTS, _OF_LAYER, _OUTSIDE
from springroll.models.hf.decoder import hf_config
from tests.models.test_hf import config_of, tensors_of

BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]
LETTERS = [chr(b) for b in BYTES] + [chr(256 + i) for i in range(256 - len(BYTES))]
TOKENS = ["<s>", "<|im_end|>", *LETTERS, "th", "the", "\u0120the", "12"]
VOCAB = len(TOKENS)
MERGES = ["t h", "th e", "\u0120 the", "1 2"]
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}"
NAMES = {ours: theirs for theirs, (ours, _) in ARCHITECTURES.items()}


def gguf_name(name):
    """(name there, number of the expert or None) of a tensor of Hugging Face's format."""
    stem, _, ending = name.rpartition(".")
    if "layers" not in stem:
        return {v: k for k, v in _OUTSIDE.items()}[stem] + f".{ending}", None
    _, _, layer, inside = stem.split(".", 3)
    expert = None
    if ".experts." in inside:
        _, _, expert, inside = inside.split(".")
        table, expert = _OF_EXPERTS, int(expert)
    else:
        table = _OF_LAYER
    return f"blk.{layer}.{ {v: k for k, v in table.items()}[inside] }.{ending}".replace(
        " ", ""
    ), expert


def turned(tensor, heads):
    """Queries or keys as llama.cpp stores those of a Llama."""
    return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)


def as_in_gguf(values, tensors):
    """The tensors by their names there."""
    found, experts = {}, {}
    for name, tensor in tensors.items():
        key, expert = gguf_name(name)
        if values["model_type"] == "llama" and key.split(".")[-2] in ("attn_q", "attn_k"):
            kind = "attention" if "attn_q" in key else "key_value"
            tensor = turned(tensor, values[f"num_{kind}_heads"])
        if expert is None:
            found[key] = tensor
        else:
            experts.setdefault(key, []).append(tensor)
    return found | {key: np.stack(each) for key, each in experts.items()}


def write_gguf(path, values, tensors, kinds=None, keys=None, vocabulary=True):
    """A file with a model.

    `kinds` are types of tensors by name, float32 by default; `keys` further metadata, by type.
    """
    name = NAMES[values["model_type"]]
    writer = gguf.GGUFWriter(path, name)
    writer.add_block_count(values["num_hidden_layers"])
    writer.add_context_length(128)
    writer.add_embedding_length(values["hidden_size"])
    writer.add_feed_forward_length(values["intermediate_size"])
    writer.add_head_count(values["num_attention_heads"])
    writer.add_head_count_kv(values["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(values["rms_norm_eps"])
    if "head_dim" in values:
        writer.add_key_length(values["head_dim"])
    if "num_experts" in values:
        writer.add_expert_count(values["num_experts"])
        writer.add_expert_used_count(values["num_experts_per_tok"])
        if "moe_intermediate_size" in values:
            writer.add_expert_feed_forward_length(values["moe_intermediate_size"])
    if vocabulary:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(TOKENS[: values["vocab_size"]])
        writer.add_token_types(([3, 3] + [1] * len(TOKENS))[: values["vocab_size"]])
        writer.add_token_merges(MERGES if values["vocab_size"] >= len(TOKENS) else [])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        writer.add_chat_template(TEMPLATE)
    for kind, pairs in (keys or {}).items():
        for key, value in pairs.items():
            getattr(writer, f"add_{kind}")(key, value)
    for key, tensor in as_in_gguf(values, tensors).items():
        kind = (kinds or {}).get(key, gguf.GGMLQuantizationType.F32)
        numbers = gguf.quantize(tensor.astype(np.float32), kind)
        writer.add_tensor(key, numbers, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tiny(path, family="llama", vocab=VOCAB, **options):
    """A file with a model of random numbers: its values as in a config.json, and its tensors."""
    values = config_of(family) | {"vocab_size": vocab}
    tensors = tensors_of(hf_config(values))
    write_gguf(path, values, tensors, **options)
    return values, tensors
