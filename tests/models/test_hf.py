"""Hugging Face folders: configs old and new, every family's golden logits, and what is refused."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from springroll.errors import InputError
from springroll.models.decoder import decoder
from springroll.models.decoder_config import DecoderConfig, shapes
from springroll.models.hf.decoder import checkpoint_names, hf_config
from springroll.models.hf.files import is_hf_folder, read_config
from springroll.models.hf.load import read_params
from tests.compiling import quick_jit
from tests.golden.weights_by_formula import weight

GOLDEN = Path(__file__).parents[1] / "golden" / "decoder.npz"
SHARED = {
    "vocab_size": 48,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "rms_norm_eps": 1e-6,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2}
FAMILIES = {
    "llama": {"model_type": "llama", "rms_norm_eps": 1e-5},
    "llama3": {"model_type": "llama", "rope_theta": 100.0, "rope_scaling": LLAMA3},
    "tied": {"model_type": "llama", "tie_word_embeddings": True},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "head_dim": 16,
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
        **EXPERTS,
    },
    "olmoe": {"model_type": "olmoe", "rms_norm_eps": 1e-5, **EXPERTS},
}


def config_of(family):
    return SHARED | FAMILIES[family]


def tensors_of(config):
    """All tensors of a checkpoint, by name, from the formula."""
    is_shape = lambda node: isinstance(node, tuple)
    found = {}
    for path, shape in jax.tree_util.tree_leaves_with_path(shapes(config), is_leaf=is_shape):
        spelt = jax.tree_util.keystr(path, simple=True, separator="/")
        for index, name in checkpoint_names(spelt, shape):
            found[name] = weight(name, shape[len(index) :])
    return found


def write(folder, values, tensors, shards=1):
    """A folder as transformers writes it."""
    (folder / "config.json").write_text(json.dumps(values))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    where = {}
    for k in range(shards):
        name = f"model-{k + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(list(tensors.items())[k::shards])
        save_file(part, folder / name)
        where |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_computes_what_transformers_computes(tmp_path, family):
    values = config_of(family)
    write(tmp_path, values, tensors_of(hf_config(values)), shards=3 if family == "qwen3" else 1)
    assert is_hf_folder(tmp_path)
    config = read_config(tmp_path)
    assert isinstance(config, DecoderConfig)
    golden = np.load(GOLDEN)
    params = jax.tree.map(jnp.asarray, read_params(tmp_path, config))
    logits = quick_jit(decoder(config).apply)(params, jnp.asarray(golden[f"{family}/tokens"]))
    np.testing.assert_allclose(logits, golden[f"{family}/logits"], rtol=0, atol=5e-6)


def test_names_are_those_of_checkpoints():
    names = tensors_of(hf_config(config_of("qwen3_moe")))
    for name in (
        "model.embed_tokens.weight",
        "model.layers.1.self_attn.q_norm.weight",
        "model.layers.0.mlp.gate.weight",
        "model.layers.1.mlp.experts.5.down_proj.weight",
        "model.norm.weight",
        "lm_head.weight",
    ):
        assert name in names
    assert "model.layers.0.self_attn.k_proj.bias" in tensors_of(hf_config(config_of("qwen2")))


def test_the_new_spelling_of_rope_says_the_same():
    old = config_of("llama3")
    new = {k: v for k, v in old.items() if not k.startswith("rope")}
    new["rope_parameters"] = LLAMA3 | {"rope_theta": 100.0}
    assert hf_config(old) == hf_config(new)


def test_attention_bias_is_of_all_four_matrices():
    for family in ("llama", "qwen3", "qwen3_moe", "olmoe"):
        config = hf_config(config_of(family) | {"attention_bias": True})
        assert config.qkv_bias and config.o_bias
    assert not hf_config(config_of("qwen2") | {"attention_bias": True}).o_bias


def test_the_number_of_experts_in_both_spellings():
    values = config_of("qwen3_moe")
    new = {k: v for k, v in values.items() if k != "num_experts"} | {"num_local_experts": 6}
    assert hf_config(new) == hf_config(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "model_type is 'mamba'; known are llama, qwen2"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'"),
        ({"sliding_window": 4096}, "sliding window is not supported"),
        ({"use_sliding_window": True}, "sliding window is not supported"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding window is not"),
        ({"mlp_bias": True}, "mlp_bias True is not supported, only False"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported, only silu"),
        ({"model_type": "olmoe", "clip_qkv": 8.0, **EXPERTS}, r"clip_qkv 8\.0 is not supported"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope type 'longrope'"),
        (
            {"model_type": "qwen3_moe", "mlp_only_layers": [0], **EXPERTS},
            "layers with and without experts in turns",
        ),
    ],
)
def test_what_the_decoder_lacks_is_refused_by_name(change, message):
    with pytest.raises(InputError, match=message):
        hf_config(config_of("llama") | change)


def test_what_says_nothing_else_is_read():
    """Keys that transformers writes of models that have none of it."""
    plain = hf_config(config_of("qwen2"))
    said = {"use_sliding_window": False, "sliding_window": 4096, "hidden_act": "silu"}
    said |= {"layer_types": ["full_attention"] * 2, "mlp_bias": False, "clip_qkv": None}
    assert hf_config(config_of("qwen2") | said) == plain


def test_a_missing_key_is_named():
    values = {k: v for k, v in config_of("llama").items() if k != "hidden_size"}
    with pytest.raises(InputError, match="the key 'hidden_size' is missing"):
        hf_config(values)
    with pytest.raises(InputError, match="num_hidden_layers is 'two'; expected a whole number"):
        hf_config(config_of("llama") | {"num_hidden_layers": "two"})


def test_a_damaged_folder_is_named(tmp_path):
    values = config_of("llama")
    config = hf_config(values)
    tensors = tensors_of(config)
    with pytest.raises(InputError, match=r"holds neither model\.safetensors nor"):
        read_params(tmp_path, config)
    missing = {k: v for k, v in tensors.items() if k != "model.norm.weight"}
    with pytest.raises(InputError, match=r"no tensor model\.norm\.weight \(for norm\)"):
        read_params(write(tmp_path, values, missing), config)
    short = tensors | {"lm_head.weight": tensors["lm_head.weight"][:5]}
    with pytest.raises(InputError, match=r"lm_head.weight has the shape \[5, 32\]; .*\[48, 32\]"):
        read_params(write(tmp_path, values, short), config)
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(InputError, match="cannot read"):
        read_params(tmp_path, config)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        read_config(tmp_path)
    assert not is_hf_folder(tmp_path)


def test_types_are_kept_or_changed(tmp_path):
    values = config_of("tied")
    config = hf_config(values)
    write(tmp_path, values, tensors_of(config))
    assert read_params(tmp_path, config)["norm"].dtype == np.float32
    assert read_params(tmp_path, config, jnp.bfloat16)["norm"].dtype == jnp.bfloat16
