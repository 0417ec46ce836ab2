"""RWKV-7 in files: those of its authors, flash-linear-attention's folders, and what is refused."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from springroll.errors import InputError
from springroll.models.hf.files import is_hf_folder, open_hf, read_config
from springroll.models.hf.load import load_hf, read_bundles, read_params
from springroll.models.hf.rwkv7 import fla_config, fla_json
from springroll.models.hf.save import save_hf
from springroll.models.rwkv7.config import RWKV7_CONFIGS, RWKV7Config, shapes
from springroll.models.rwkv7.model import RWKV7
from springroll.planner.plan import named_model
from springroll.stream.store import mapped_model
from tests.golden.rwkv7_by_formula import rwkv7_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden" / "rwkv7.npz"
TINY = RWKV7_CONFIGS["rwkv7-tiny"]


def params_of(config, dtype=np.float32):
    """Random numbers; what no checkpoint has, layer 0's share of its own value, is 0."""
    rng = np.random.default_rng(0)
    draw = lambda s: rng.standard_normal(s).astype(np.float32).astype(jnp.dtype(dtype))
    params = jax.tree.map(draw, shapes(config), is_leaf=lambda x: isinstance(x, tuple))
    for name in ("v_down", "v_up", "v_bias"):
        params["layers"]["attn"][name][0] = 0
    return params


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture(scope="module")
def authors(tmp_path_factory):
    """A folder with a file as its authors name its tensors, and some text."""
    folder = tmp_path_factory.mktemp("authors")
    tensors = {k: np.ascontiguousarray(x) for k, x in rwkv7_checkpoint(3).items()}
    save_file(tensors, folder / "rwkv7-tiny.safetensors")
    (folder / "rwkv_vocab_v20230424.txt").write_text("1 'a' 1\n")
    return folder


def test_a_file_of_its_authors_computes_what_the_package_rwkv_computes(authors):
    golden = np.load(GOLDEN)
    assert is_hf_folder(authors) and is_hf_folder(authors / "rwkv7-tiny.safetensors")
    model, params = load_hf(authors)
    assert isinstance(model, RWKV7) and model.config.layers == 3 and model.config.v_rank == 4
    logits = jax.jit(model.apply)(params, jnp.asarray(golden["tokens"])[None])
    np.testing.assert_allclose(logits[0], golden["logits"], atol=1e-5)
    assert_same(load_hf(authors / "rwkv7-tiny.safetensors")[1], params)


def test_it_can_be_written_as_a_folder_and_takes_its_vocabulary_along(authors, tmp_path):
    model, params = load_hf(authors)
    with pytest.raises(InputError, match=r"group_eps to be head_dim \* norm_eps = 0\.00032"):
        save_hf(tmp_path / "out", model, params, like=authors)
    config = dataclasses.replace(model.config, group_eps=32e-5)
    with pytest.raises(InputError, match="another model than `like`"):
        save_hf(tmp_path / "out", config, params, like=authors)
    save_hf(tmp_path / "out", config, params)
    assert_same(load_hf(tmp_path / "out")[1], params)


def test_what_is_for_decoders_only_says_so(authors):
    with pytest.raises(InputError, match="holds an RWKV-7; only decoders can be planned"):
        named_model(authors)
    with pytest.raises(InputError, match="an RWKV7 cannot be walked layer by layer"):
        mapped_model(authors)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_is_written_is_read_bit_for_bit(tmp_path, dtype):
    params = params_of(TINY, dtype)
    save_hf(tmp_path / "out", RWKV7(TINY), params, shard_bytes=20_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert read_config(tmp_path / "out") == TINY
    assert_same(read_params(tmp_path / "out", TINY), params)
    for i, bundle in enumerate(read_bundles(open_hf(tmp_path / "out"))):
        expected = {k: x for k, x in params.items() if k != "layers"}
        if i < TINY.layers:
            expected = jax.tree.map(lambda x, i=i: x[i], params["layers"])
        assert_same(bundle, expected)
    again = tmp_path / "again"
    save_hf(again, TINY, params, like=tmp_path / "out", dtype="float32")
    values = json.loads((tmp_path / "out/config.json").read_text())
    assert json.loads((again / "config.json").read_text()) == values | {"torch_dtype": "float32"}


def test_names_and_shapes_are_those_of_flash_linear_attention(tmp_path):
    save_hf(tmp_path, TINY, params_of(TINY))
    found = {name: x.shape for name, x in load_file(tmp_path / "model.safetensors").items()}
    for name, shape in {
        "model.embeddings.weight": (256, 32),
        "model.layers.0.pre_norm.bias": (32,),
        "model.layers.1.attn.x_r": (1, 1, 32),
        "model.layers.1.attn.r_k": (2, 16),
        "model.layers.1.attn.w_lora.lora.0.weight": (8, 32),
        "model.layers.1.attn.w_lora.lora.2.weight": (32, 8),
        "model.layers.1.attn.v_lora.lora.2.bias": (32,),
        "model.layers.0.attn.g_norm.weight": (32,),
        "model.layers.0.ffn.x_k": (32,),
        "model.layers.0.ffn.key.weight": (128, 32),
        "model.norm.bias": (32,),
        "lm_head.weight": (256, 32),
    }.items():
        assert found[name] == shape
    params = dict(load_file(tmp_path / "model.safetensors"))
    params["model.layers.0.attn.v_lora.lora.0.weight"] = np.ones((8, 32), np.float32)
    save_file(params, tmp_path / "model.safetensors")
    open_hf(tmp_path)  # which some folders have and no computation reads
    assert not any("layers.0.attn.v_lora" in name or "g_lora.lora.2.bias" in name for name in found)
    assert "model.layers.1.pre_norm.weight" not in found


def test_other_spellings_of_the_same_shape_are_read():
    values = fla_json(TINY)
    assert fla_config(values) == TINY
    short = {k: v for k, v in values.items() if k not in ("head_dim", "intermediate_size")}
    assert fla_config(short) == TINY  # from num_heads and hidden_ratio
    wide = fla_config(values | {"hidden_ratio": None, "intermediate_size": None})
    assert wide.ffn == 128
    bare = {k: v for k, v in values.items() if k not in ("num_heads", "head_dim", "value_dim")}
    assert fla_config(bare | {"hidden_size": 64}).head_dim == 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attn": {"layers": [0]}}, "attn .* is not supported, only None"),
        ({"norm_first": False}, "norm_first False is not supported, only True"),
        ({"norm_bias": False}, "norm_bias False"),
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not supported, only sqrelu"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings True"),
        ({"value_dim": [32, 64]}, "values of another width"),
        ({"head_dim": 5}, "heads of width 5 must divide it evenly"),
    ],
)
def test_what_the_model_lacks_is_refused_by_name(change, message):
    with pytest.raises(InputError, match=message):
        fla_config(fla_json(TINY) | change)


def test_a_missing_key_and_another_model_are_named(tmp_path):
    values = fla_json(TINY)
    with pytest.raises(InputError, match="the key 'a_low_rank_dim' is missing"):
        fla_config({k: v for k, v in values.items() if k != "a_low_rank_dim"})
    with pytest.raises(InputError, match="vocab_size is '32'; expected a whole number"):
        fla_config(values | {"vocab_size": "32"})
    with pytest.raises(InputError, match="another model than `like`: a_rank differs"):
        fla_json(TINY, like=values | {"a_low_rank_dim": 4})
    (tmp_path / "config.json").write_text('{"model_type": "rwkv6"}')
    with pytest.raises(InputError, match=r"model_type is 'rwkv6'; known are llama, .*, rwkv7"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.1.att.a1": None}, r"no tensor blocks\.1\.att\.a1 \(for layers/attn/a_down\)"),
        ({"blocks.2.att.w1": None}, "the tensor 'blocks.2.att.w1' is missing"),
        ({"emb.weight": None}, "holds no RWKV-7: expected emb.weight"),
        ({"blocks.0.ffn.s_emb.weight": np.zeros((2, 2), np.float32)}, "holds 1 tensors"),
        ({"blocks.0.att.r_k": np.zeros(64, np.float32)}, "another name or number of axes"),
        ({"blocks.x.ln1.bias": np.zeros(64, np.float32)}, "another name or number of axes"),
        ({"blocks.1.ln1.bias": np.zeros(7, np.float32)}, r"has the shape \[7\]; .* \[64\]"),
        ({"ln_out.bias": np.zeros(64, np.int8)}, "is stored as int8; expected bfloat16"),
    ],
)
def test_a_damaged_file_of_its_authors_is_named(tmp_path, change, message):
    tensors = {
        k: np.ascontiguousarray(x)
        for k, x in (rwkv7_checkpoint(3) | change).items()
        if x is not None
    }
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=message):
        open_hf(tmp_path / "x.safetensors")


def test_published_models_have_as_many_parameters_as_their_authors_say():
    """arXiv 2503.14456; the first layer's share of its own value is in no checkpoint."""
    for name, count in {
        "rwkv7-0.1b": 191_034_624,
        "rwkv7-0.4b": 450_767_872,
        "rwkv7-1.5b": 1_527_404_544,
        "rwkv7-2.9b": 2_947_735_040,
    }.items():
        config = RWKV7_CONFIGS[name]
        assert config.parameters - (2 * config.v_rank + 1) * config.hidden == count
        assert config.active_parameters == config.parameters


def test_a_shape_that_cannot_be_is_refused():
    with pytest.raises(InputError, match="hidden is 30; heads of width 64 must divide"):
        RWKV7Config(vocab=5, hidden=30, layers=1, ffn=8)
    with pytest.raises(InputError, match="a_rank is 0; it must be at least 1"):
        RWKV7Config(vocab=5, hidden=64, layers=1, ffn=8, a_rank=0)
