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
from springroll.models.decoder_config import DecoderConfig, shape_leaves, shapes
from springroll.models.hf.decoder import DECODER, hf_config
from springroll.models.hf.files import is_hf_folder, leaves_of, open_hf, read_config
from springroll.models.hf.load import load_hf, load_int8, read_params, read_parts
from springroll.quant.int8_weights import quantize_weights
from tests.compiling import quick_jit
from tests.golden.weights_by_formula import weight
from tests.models import test_decoder_golden, torch_file

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
YARN = {
    "rope_type": "yarn",
    "factor": 8.0,
    "beta_fast": 4.0,
    "mscale": 0.7,
    "mscale_all_dim": 0.3,
    "original_max_position_embeddings": 64,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2}
GEMMA, GEMMA3 = {"model_type": "gemma2"}, {"model_type": "gemma3_text"}
LOCAL_YARN = {"sliding_attention": {"rope_type": "yarn"}}
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
    "linear": {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.5}},
    "dynamic": {
        "model_type": "llama",
        "max_position_embeddings": 8,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    },
    "yarn": {"model_type": "llama", "rope_theta": 100.0, "rope_scaling": YARN},
    "mistral": {"model_type": "mistral", "sliding_window": 5},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 6, "num_experts_per_tok": 2},
    "phi3": {"model_type": "phi3", "sliding_window": 5},
    "phi3_long": {
        "model_type": "phi3",
        "original_max_position_embeddings": 6,
        "max_position_embeddings": 64,
        "partial_rotary_factor": 0.5,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [1.2, 3.0]},
    },
    "smollm3": {"model_type": "smollm3", "num_hidden_layers": 3, "no_rope_layers": [1, 0, 1]},
    "smollm3_window": {
        "model_type": "smollm3",
        "num_hidden_layers": 3,
        "no_rope_layer_interval": 3,
        "use_sliding_window": True,
        "sliding_window": 4,
        "tie_word_embeddings": False,
    },
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 16,
        "sliding_window": 5,
        "query_pre_attn_scalar": 48,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 1.5,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "num_hidden_layers": 3,
        "head_dim": 16,
        "sliding_window": 5,
        "sliding_window_pattern": 2,
        "rope_theta": 1000.0,
        "rope_local_base_freq": 20.0,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    },
    "gpt_oss": {
        "model_type": "gpt_oss",
        "head_dim": 8,
        "intermediate_size": 24,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "rms_norm_eps": 1e-5,
        "sliding_window": 5,
        "swiglu_limit": 1.0,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 8.0,
            "beta_fast": 4.0,
            "truncate": False,
            "original_max_position_embeddings": 64,
        },
        "rope_theta": 100.0,
    },
}


def config_of(family):
    return SHARED | FAMILIES[family]


def tensors_of(config, values=None):
    """All tensors of a checkpoint, by name, from the formula."""
    naming = DECODER.naming_of(values or {})
    return {
        stored.name: weight(stored.name, stored.shape)
        for path, shape in shape_leaves(shapes(config)).items()
        for stored in naming.stored(config, path, shape, None)
    }


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


def by_name(family, folder):
    """(model, params) of a family with weights from the formula, read from a folder."""
    values = config_of(family)
    tensors = tensors_of(hf_config(values), values)
    write(folder, values, tensors, shards=3 if family == "qwen3" else 1)
    assert is_hf_folder(folder)
    config = read_config(folder)
    assert isinstance(config, DecoderConfig)
    return decoder(config), jax.tree.map(jnp.asarray, read_params(folder, config))


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() & test_decoder_golden.FAMILIES.keys()))
def test_a_folder_holds_the_model_whose_logits_are_those_of_transformers(tmp_path, family):
    """They are compared in `test_decoder_golden`."""
    model, params = by_name(family, tmp_path)
    assert model.config == test_decoder_golden.FAMILIES[family]
    jax.tree.map(np.testing.assert_array_equal, params, test_decoder_golden.by_formula(family))


ALIKE = ("linear", "mistral", "phi3", "smollm3")  # what others of the list have too


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ALIKE else ())
        for name in FAMILIES
        if name not in test_decoder_golden.FAMILIES
    ],
)
def test_a_folder_computes_what_transformers_computes(tmp_path, family):
    model, params = by_name(family, tmp_path)
    golden = np.load(GOLDEN)
    logits = quick_jit(model.apply)(params, jnp.asarray(golden[f"{family}/tokens"]))
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
        ({"model_type": "mamba"}, "model_type is 'mamba'; known are llama, mistral, qwen2"),
        ({"rope_scaling": {"type": "mrope", "factor": 2.0}}, "rope type 'mrope' is not supported"),
        ({"sliding_window": 4096}, "sliding window is not supported"),
        ({"use_sliding_window": True}, "sliding window is not supported"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding window is not"),
        ({"mlp_bias": True}, "mlp_bias True is not supported, only False"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported, only silu"),
        ({"model_type": "olmoe", "clip_qkv": 8.0, **EXPERTS}, r"clip_qkv 8\.0 is not supported"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "linear"}}},
            "for every kind of layer",
        ),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "sliding window is not"),
        (GEMMA | {"hidden_activation": "gelu"}, "hidden_activation 'gelu' is not supported, only"),
        (GEMMA | {"use_bidirectional_attention": True}, "use_bidirectional_attention True is not"),
        (GEMMA3 | {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is not supported in"),
        (GEMMA3 | {"rope_parameters": LOCAL_YARN}, "rope type 'yarn' is not supported there"),
        (
            {"model_type": "qwen2", "layer_types": ["full_attention", "linear_attention"]},
            "layer_types holds 'linear_attention'; supported are full_attention and sliding",
        ),
        (
            {"model_type": "mistral", "layer_types": ["sliding_attention", "full_attention"]},
            "not supported in some layers of mistral",
        ),
        ({"model_type": "gpt_oss", "swiglu_alpha": 2.0, **EXPERTS}, r"swiglu_alpha 2\.0 is not"),
        ({"model_type": "gemma3"}, "model_type is 'gemma3'; known are"),
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


@pytest.mark.parametrize("shards", [1, 2])
def test_weights_of_pytorch_are_read_like_safetensors(shards, tmp_path):
    values = config_of("tied")
    config = hf_config(values)
    tensors = tensors_of(config)
    (tmp_path / "config.json").write_text(json.dumps(values))
    saved = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    names = list(saved)
    where = {}
    for k in range(shards):
        name = "pytorch_model.bin" if shards == 1 else f"pytorch_model-0000{k}.bin"
        where |= dict.fromkeys(names[k::shards], name)
        torch_file.save({n: saved[n] for n in names[k::shards]}, tmp_path / name)
    if shards > 1:
        index = {"weight_map": where}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    found = read_params(tmp_path, config)
    np.testing.assert_array_equal(found["embed_tokens"], tensors["model.embed_tokens.weight"])


def test_int8_weights_made_layer_by_layer_are_those_of_all(tmp_path):
    values = config_of("qwen2")
    tensors = tensors_of(hf_config(values))
    name = next(name for name in tensors if name.endswith("up_proj.weight"))
    tensors[name] = tensors[name].copy()
    tensors[name][3] = 0.0  # a channel without a size
    write(tmp_path, values, tensors)
    _, whole = load_hf(tmp_path, jnp.float32)
    _, got = load_int8(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, got, quantize_weights(whole))
    _, short = load_int8(tmp_path, jnp.bfloat16)  # the same but for what is left out
    jax.tree.map(np.testing.assert_array_equal, short["layers"]["mlp"], got["layers"]["mlp"])
    assert short["embed_tokens"].dtype == short["norm"].dtype == jnp.bfloat16
    tensors[name][1, 2] = np.nan
    write(tmp_path, values, tensors)
    with pytest.raises(InputError, match="layers/mlp/up_proj holds NaN"):
        load_int8(tmp_path)


def test_a_leaf_is_read_whole_or_layer_by_layer(tmp_path):
    values = config_of("llama")
    write(tmp_path, values, tensors_of(hf_config(values)))
    checkpoint = open_hf(tmp_path)
    for path, shape in leaves_of(checkpoint.config):
        (whole,) = read_parts(checkpoint, path, shape, np.float32, whole=True)
        parts = list(read_parts(checkpoint, path, shape, np.float32))
        assert len(parts) == (shape[0] if path.startswith("layers/") else 1)
        np.testing.assert_array_equal(np.stack(parts).reshape(shape), whole)
