"""Written folders: read back bit for bit, whole or absent, and nothing is overwritten."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from springroll.errors import InputError
from springroll.models.decoder import decoder
from springroll.models.decoder_config import CONFIGS, llama, shapes
from springroll.models.hf import save as hf_write
from springroll.models.hf.decoder import config_json, hf_config
from springroll.models.hf.files import open_hf, read_config
from springroll.models.hf.load import (
    load_hf,
    read_bundles,
    read_into,
    read_layer,
    read_params,
    read_rest,
)
from springroll.models.hf.save import save_hf
from tests.models.test_hf import config_of

TINY = CONFIGS["llama-tiny"]
NEWER = ("dynamic", "yarn", "mistral", "mixtral", "phi3_long", "smollm3_window", "gemma2", "gemma3")
NEWER += ("gpt_oss",)
MODELS = {
    "dense": TINY,
    "tied": dataclasses.replace(TINY, tied=True),
    "bias": dataclasses.replace(TINY, qkv_bias=True, kv_heads=1),
    "biases": dataclasses.replace(TINY, qkv_bias=True, o_bias=True),
    "experts": llama(32, 24, 2, 2, vocab=256, experts=4, top_k=2, qk_norm="head"),
    "olmoe": llama(32, 24, 2, 2, vocab=256, experts=4, top_k=2, qk_norm="whole"),
    **{name: hf_config(config_of(name)) for name in NEWER},
}


def params_of(config, dtype=np.float32):
    rng = np.random.default_rng(0)
    draw = lambda s: rng.standard_normal(s).astype(np.float32).astype(jnp.dtype(dtype))
    return jax.tree.map(draw, shapes(config), is_leaf=lambda x: isinstance(x, tuple))


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_is_written_is_read_bit_for_bit(tmp_path, name, dtype):
    config, params = MODELS[name], params_of(MODELS[name], dtype)
    assert save_hf(tmp_path / "out", config, params, shard_bytes=20_000) == tmp_path / "out"
    assert read_config(tmp_path / "out") == config
    assert_same(read_params(tmp_path / "out", config), params)
    checkpoint = open_hf(tmp_path / "out")
    for i, bundle in enumerate(read_bundles(checkpoint)):
        expected = {k: x for k, x in params.items() if k != "layers"}
        if i < config.layers:
            expected = jax.tree.map(lambda x, i=i: x[i], params["layers"])
        assert_same(bundle, expected)
    names = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())["weight_map"]
    assert ("lm_head.weight" in names) == (not config.tied)


def test_a_folder_is_a_model_that_computes_the_same(tmp_path):
    model = decoder(TINY)
    params = jax.tree.map(jnp.asarray, params_of(TINY))
    save_hf(tmp_path, model, params)
    again, read = load_hf(tmp_path)
    assert again.config == TINY and isinstance(read["norm"], jax.Array)
    assert_same(read, params)
    assert load_hf(tmp_path, jnp.bfloat16)[1]["norm"].dtype == jnp.bfloat16


def test_layers_that_come_one_by_one_make_the_same_files(tmp_path):
    config = MODELS["experts"]
    params, alive = params_of(config), []

    def bundles():
        for i in range(config.layers):
            alive.append(i)
            yield jax.tree.map(lambda x, i=i: x[i], params["layers"])
        yield {k: x for k, x in params.items() if k != "layers"}

    save_hf(tmp_path / "a", config, params, shard_bytes=30_000, dtype="bfloat16")
    save_hf(tmp_path / "b", config, bundles(), shard_bytes=30_000, dtype=jnp.bfloat16)
    assert alive == [0, 1]
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == sorted(p.name for p in (tmp_path / "b").iterdir())
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_shards_are_as_large_as_they_may_be_and_the_format_s_library_reads_them(tmp_path):
    config, limit = MODELS["experts"], 16_500
    params = params_of(config)
    save_hf(tmp_path, config, params, shard_bytes=limit)
    shards = sorted(tmp_path.glob("*.safetensors"))
    largest = 4 * 256 * 32  # the embedding, alone in its file
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * config.parameters
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    read = {}
    for path in shards:
        with safe_open(path, framework="numpy") as file:
            inside = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert sum(x.nbytes for x in inside.values()) <= max(
            limit, largest if len(inside) == 1 else 0
        )
        assert all(index["weight_map"][name] == path.name for name in inside)
        read |= inside
    expert = "model.layers.1.mlp.experts.3.down_proj.weight"
    np.testing.assert_array_equal(
        read[expert], params["layers"]["mlp"]["experts"]["down_proj"][1, 3]
    )


def test_one_small_file_has_no_index(tmp_path):
    save_hf(tmp_path, TINY, params_of(TINY))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_a_layer_is_a_view_of_the_file_unless_it_must_be_copied(tmp_path):
    config = MODELS["experts"]
    save_hf(tmp_path, config, params_of(config, jnp.bfloat16))
    checkpoint = open_hf(tmp_path)
    layer = read_layer(checkpoint, 1)
    assert not layer["self_attn"]["q_proj"].flags.owndata
    assert layer["mlp"]["experts"]["up_proj"].flags.owndata  # stacked
    assert not read_rest(checkpoint)["embed_tokens"].flags.owndata
    assert read_rest(checkpoint, np.float32)["embed_tokens"].flags.owndata
    wide = jax.tree.map(lambda x: x.astype(np.float32), layer)
    assert_same(read_layer(checkpoint, 1, np.float32), wide)


def test_tensors_are_copied_into_memory_that_is_there(tmp_path):
    config = MODELS["experts"]
    params = params_of(config, jnp.bfloat16)
    save_hf(tmp_path, config, params)
    checkpoint = open_hf(tmp_path)
    experts = params["layers"]["mlp"]["experts"]["up_proj"]
    whole, one = np.zeros(experts.shape, np.float32), np.zeros(experts.shape[1:], np.float32)
    read_into(checkpoint, "layers/mlp/experts/up_proj", whole)
    read_into(checkpoint, "layers/mlp/experts/up_proj", one, layer=1)
    np.testing.assert_array_equal(whole, experts.astype(np.float32))
    np.testing.assert_array_equal(one, whole[1])
    norm = np.zeros(config.hidden, jnp.bfloat16)
    read_into(checkpoint, "norm", norm)
    np.testing.assert_array_equal(norm, params["norm"])


def test_what_belongs_to_the_text_comes_along(tmp_path):
    """A model from a folder, trained and written: its config, tokenizer and templates stay."""
    source, out = tmp_path / "source", tmp_path / "out"
    save_hf(source, TINY, params_of(TINY))
    values = json.loads((source / "config.json").read_text())
    values |= {"eos_token_id": 7, "max_position_embeddings": 512, "dtype": "float32"}
    (source / "config.json").write_text(json.dumps(values))
    (source / "tokenizer.json").write_text("{}")
    (source / "notes.txt").write_text("not of the model")
    save_hf(out, TINY, params_of(TINY, jnp.bfloat16), like=source)
    written = json.loads((out / "config.json").read_text())
    del values["dtype"]
    assert written == values | {"torch_dtype": "bfloat16"}
    assert sorted(p.name for p in out.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    with pytest.raises(InputError, match="another model than `like`: tied differs"):
        save_hf(tmp_path / "x", MODELS["tied"], params_of(MODELS["tied"]), like=source)
    (source / "config.json").write_text("[]")
    with pytest.raises(InputError, match="is not a JSON object"):
        save_hf(tmp_path / "x", TINY, params_of(TINY), like=source)
    assert not (tmp_path / "x").exists()


def test_nothing_is_overwritten(tmp_path):
    save_hf(tmp_path, TINY, params_of(TINY))
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match=r"already holds config\.json; choose another folder"):
        save_hf(tmp_path, TINY, params_of(TINY, jnp.bfloat16))
    assert (tmp_path / "model.safetensors").read_bytes() == before
    with pytest.raises(InputError, match="is a file; give a folder"):
        save_hf(tmp_path / "config.json", TINY, params_of(TINY))


def test_what_cannot_be_written_is_refused_before_a_folder_is_made(tmp_path, monkeypatch):
    for config, message in [
        (CONFIGS["moe-tiny"], "no name for this model: .* has no .*selection_bias=True"),
        (dataclasses.replace(TINY, sinks=True), "the nearest, has no sinks=True"),
    ]:
        with pytest.raises(InputError, match=message):
            save_hf(tmp_path / "out", config, params_of(config))
    with pytest.raises(InputError, match="dtype of the folder is float16; expected bfloat16 or"):
        save_hf(tmp_path / "out", TINY, params_of(TINY), dtype=np.float16)
    with pytest.raises(InputError, match="dtype of the folder is none"):
        save_hf(tmp_path / "out", TINY, iter(()))
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(hf_write.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"takes \d+ KiB and .* has 0\.977 KiB free; choose an"):
        save_hf(tmp_path / "out", TINY, params_of(TINY))
    assert not (tmp_path / "out").exists()


def test_a_write_that_fails_leaves_no_model(tmp_path):
    params = params_of(TINY)
    params["layers"]["mlp"]["up_proj"] = params["layers"]["mlp"]["up_proj"][:, :5]
    with pytest.raises(InputError, match=r"layers/mlp/up_proj is \(2, 5, 32\); .* \(2, 64, 32\)"):
        save_hf(tmp_path / "none", TINY, params)
    assert not (tmp_path / "none").exists()
    layers = iter([jax.tree.map(lambda x: x[0], params["layers"])])
    with pytest.raises(InputError, match=r"mlp/up_proj of layer 0 is \(5, 32\); .* \(64, 32\)"):
        save_hf(tmp_path / "a", TINY, layers, dtype=np.float32, shard_bytes=9000)
    with pytest.raises(InputError, match="of layer 0 is not there"):
        save_hf(tmp_path / "b", TINY, iter(()), dtype=np.float32)
    for name in "ab":
        left = [p.name for p in (tmp_path / name).iterdir()]
        assert not any(p.endswith((".tmp", "index.json")) or p == "model.safetensors" for p in left)
        with pytest.raises(InputError, match=r"holds neither model\.safetensors nor"):
            open_hf(tmp_path / name)


@pytest.mark.parametrize("name", [n for n in CONFIGS if not n.startswith(("gpt-oss", "moe-"))])
def test_every_published_model_has_a_config(name):
    values = config_json(CONFIGS[name], "float32")
    assert values["torch_dtype"] == "float32" and values["max_position_embeddings"] >= 4096
    json.dumps(values)


def test_what_would_not_be_read_is_refused(tmp_path):
    """A bias that the config does not speak of is no bias that may be left out."""
    save_hf(tmp_path, MODELS["biases"], params_of(MODELS["biases"]))
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"attention_bias": False}))
    with pytest.raises(
        InputError, match=r"holds 8 tensors .* model\.layers\.0\.self_attn\.\w_proj"
    ):
        open_hf(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(values | {"model_type": "mamba"}))
    with pytest.raises(InputError, match=r"^.*config\.json: model_type is 'mamba'"):
        open_hf(tmp_path)


def test_shards_that_are_lost_or_cut_are_named_at_once(tmp_path):
    save_hf(tmp_path, TINY, params_of(TINY), shard_bytes=20_000)
    shards = sorted(tmp_path.glob("*.safetensors"))
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole[:-100])
    with pytest.raises(InputError, match=rf"{shards[1].name}: it has .* download it again"):
        open_hf(tmp_path)
    shards[1].unlink()
    with pytest.raises(InputError, match=rf"lacks 1 of its {len(shards)} shards, {shards[1].name}"):
        open_hf(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(InputError, match="expected JSON with a weight_map"):
        open_hf(tmp_path)
