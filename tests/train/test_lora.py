"""Adapters beside a frozen model: PEFT's steps, what a state holds, the commands on its runs."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from springroll.cli.main import main
from springroll.errors import InputError
from springroll.models.decoder import decoder
from springroll.models.decoder_config import CONFIGS, llama, named, shapes
from springroll.models.hf import files
from springroll.models.hf.save import save_hf
from springroll.safetensors_map import mapped
from springroll.subspace.adapters import floats
from springroll.tokens.byte_tokenizer import write_byte_tokenizer
from springroll.train import lora
from springroll.train.build import make
from springroll.train.config import TrainConfig
from springroll.train.step_memory import Memory
from springroll.trees import named_leaves, tree_bytes
from tests.cli.newest import newest_weights
from tests.cli.tiny import text_file
from tests.golden.weights_by_formula import weight

GOLDEN = Path(__file__).parents[1] / "golden" / "lora.npz"
RANK, ALPHA = 4, 6.0
STEPS = 4


def folder_of(path, config, params=None):
    model = decoder(config)
    save_hf(path, config, model.init(jax.random.key(0)) if params is None else params)
    write_byte_tokenizer(path)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("lora") / "model", named("llama-tiny", CONFIGS))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return str(text_file(tmp_path_factory.mktemp("text")))


def test_steps_are_those_of_peft(tmp_path):
    """AdamW with decay and clipping, five steps, float32 (`tests/golden/make_lora.py`)."""
    golden = np.load(GOLDEN)
    config = llama(32, 40, 4, 2, vocab=48, kv_heads=2, norm_eps=1e-5)
    params = jax.tree_util.tree_map_with_path(
        lambda path, shape: (
            np.stack([weight(name, shape[1:]) for name in names(path, shape)])
            if path[0].key == "layers"
            else weight(names(path, shape)[0], shape)
        ),
        shapes(config),
        is_leaf=lambda x: isinstance(x, tuple),
    )
    save_hf(tmp_path / "base", config, params)
    run = TrainConfig(
        model=str(tmp_path / "base"),
        optimizer="lora",
        rank=RANK,
        lora_alpha=ALPHA,
        lr=1e-2,
        weight_decay=0.1,
        clip=0.5,
        schedule="constant",
        warmup=0.0,
    )
    learner = make(run)[1]
    state = learner.init(jax.random.key(0))
    first = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            jnp.asarray(
                np.stack([weight(name, leaf.shape[1:]) for name in names(path, leaf.shape)])
            )
            if path[-1].key == "lora_A"
            else leaf
        ),
        state.params,
    )
    state = state._replace(params=first)
    for rows, expected in zip(golden["tokens"].astype(np.int32), golden["losses"], strict=True):
        state, metrics = learner.step(state, jnp.asarray(rows))
        assert float(metrics["loss"]) == pytest.approx(float(expected), abs=1e-5)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        for layer, name in enumerate(names(path, leaf.shape)):
            np.testing.assert_allclose(leaf[layer], golden[name], atol=1e-5)


def names(path, shape):
    """Of a leaf in a checkpoint, one for each layer; of an adapter as PEFT calls them."""
    keys = [key.key for key in path]
    if keys[0] != "layers":
        return [{"lm_head": "lm_head.weight"}.get(keys[0], f"model.{keys[0]}.weight")]
    return [f"model.layers.{i}.{'.'.join(keys[1:])}.weight" for i in range(shape[0])]


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_a_state_holds_adapters_and_moments_and_no_weight(folder, bits):
    run = TrainConfig(model=folder, optimizer="lora", rank=RANK, base_bits=bits, batch=2)
    model, learner = make(run)
    state = jax.eval_shape(learner.init, jax.random.key(0))
    matrices = [s for p, s in files.leaves_of(model.config) if p.endswith("_proj")]
    numbers = sum(RANK * (rows + columns) * layers for layers, rows, columns in matrices)
    assert tree_bytes(state.params) == 4 * numbers
    assert tree_bytes(state) == 3 * 4 * numbers + 3 * 4  # moments, and three counters
    base = lora.base_of(run, model)
    held = named_leaves(base.structs)
    of_row = {None: lambda n: 4 * n, 8: lambda n: n + 4, 4: lambda n: -(-n // 64) * (32 + 2)}[bits]
    expected = sum(layers * rows * of_row(columns) for layers, rows, columns in matrices)
    assert tree_bytes({path: w for path, w in held.items() if "_proj" in path}) == expected
    memory = learner.memory(jax.ShapeDtypeStruct((2, 9), jnp.int32)) if bits == 4 else None
    if isinstance(memory, Memory):
        assert memory.weights == tree_bytes(state.params) + tree_bytes(base.structs)
        assert memory.gradients <= 4 * numbers


def command(text, folder, out, *more, steps=STEPS):
    size = "--batch 2 --sequence 16 --valid-streams 2 --valid-tokens 16 --rank 4 --log-every 0 "
    size += "--eval-every 0 --schedule-steps 4 --optimizer lora --lr 0.02 --devices 1"
    return [
        *("train", "--data", text, "--out", str(out), "--model", folder, "--steps", str(steps)),
        *size.split(),
        *more,
    ]


def newest(out, step=STEPS):
    return (out / "checkpoints" / f"{step:09d}.safetensors").read_bytes()


@pytest.mark.slow
def test_a_run_goes_on_to_the_same_bytes(tmp_path, text, folder):
    out, whole, more = tmp_path / "run", tmp_path / "whole", ("--base-bits", "8", "--remat")
    assert main(command(text, folder, out, *more, "--accumulate", "2", steps=2)) == 0
    assert main(["train", "--resume", "--out", str(out), "--steps", str(STEPS)]) == 0
    assert main(command(text, folder, whole, *more, "--accumulate", "2")) == 0
    assert newest(out) == newest(whole)


@pytest.mark.slow
def test_a_run_is_written_as_model_and_as_adapter(tmp_path, text, folder, capsys):
    out = tmp_path / "run"
    assert main(command(text, folder, out, "--base-bits", "4")) == 0
    assert not [name for name in mapped(_file(out)) if "embed" in name or "norm" in name]
    merged = newest_weights(out).params
    assert main(["export", str(out), str(tmp_path / "merged")]) == 0
    q = load_file(tmp_path / "merged" / "model.safetensors")
    name = "model.layers.1.self_attn.q_proj"
    np.testing.assert_array_equal(q[f"{name}.weight"], merged["layers"]["self_attn"]["q_proj"][1])
    assert main(["export", str(out), str(tmp_path / "adapter"), "--adapter"]) == 0
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    about = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert about["r"] == about["lora_alpha"] == 4 and about["base_model_name_or_path"] == folder
    config = newest_weights(out).config
    base = floats(
        jax.tree.map(
            lambda w: w[1],
            lora.base_of(config, make(config)[0]).read()["layers"]["self_attn"]["q_proj"],
        )
    )
    module = f"base_model.model.{name}"
    change = adapter[f"{module}.lora_B.weight"] @ adapter[f"{module}.lora_A.weight"]
    assert np.abs(change).max() > 1e-4
    np.testing.assert_allclose(q[f"{name}.weight"], np.asarray(base) + change, atol=1e-6)
    capsys.readouterr()
    assert main(["export", str(out), str(tmp_path / "other"), "--lora-rank", "2"]) == 2
    assert "--adapter writes it" in capsys.readouterr().err
    assert main(["eval", str(out), "--json"]) == 0
    valid = json.loads((out / "summary.json").read_text())["valid_bits_per_byte"]
    found = json.loads(capsys.readouterr().out)["bits_per_byte"]
    assert found == pytest.approx(valid, rel=1e-4)
    assert main(["sample", str(out), "--prompt", "def", "--length", "3"]) == 0
    assert capsys.readouterr().out.startswith("def")


def _file(out, step=STEPS):
    return out / "checkpoints" / f"{step:09d}.safetensors"


@pytest.mark.slow
def test_two_devices_learn_what_one_learns(tmp_path, text, folder):
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(command(text, folder, one, "--base-bits", "4")) == 0
    assert main([*command(text, folder, two, "--base-bits", "4"), "--devices", "2"]) == 0
    apart = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)
    jax.tree.map(apart, newest_weights(one).params, newest_weights(two).params)


@pytest.mark.slow
def test_weights_that_are_not_finite_leave_no_run_behind(tmp_path, text, capsys):
    config, out = named("llama-tiny", CONFIGS), tmp_path / "run"
    params = decoder(config).init(jax.random.key(0))
    params["layers"]["mlp"]["up_proj"] = params["layers"]["mlp"]["up_proj"].at[1, 0, 0].set(np.nan)
    model = folder_of(tmp_path / "model", config, params)
    assert main(command(text, model, out, "--base-bits", "4")) == 2
    assert "layers/mlp/up_proj holds NaN" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.slow
def test_another_base_is_refused(tmp_path, text, capsys):
    config, out = named("llama-tiny", CONFIGS), tmp_path / "run"
    model = folder_of(tmp_path / "model", config)
    assert main(command(text, model, out, steps=1)) == 0
    before = newest(out, 1)
    for file in (tmp_path / "model").iterdir():
        file.unlink()
    folder_of(tmp_path / "model", config, decoder(config).init(jax.random.key(1)))
    files.fingerprint.cache_clear()
    capsys.readouterr()
    assert main(["train", "--resume", "--out", str(out), "--steps", "2"]) == 2
    assert "the model is" in capsys.readouterr().err
    assert main(["export", str(out), str(tmp_path / "merged")]) == 2
    assert "is not what it began with any more" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists() and newest(out, 1) == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"optimizer": "lora", "engine": "stream"}, "--base-bits 4"),
        ({"optimizer": "lora", "layerwise": True}, "layerwise is not of --optimizer lora"),
        ({"optimizer": "lora", "scale": 2.0}, "scale is not of --optimizer lora"),
        ({"optimizer": "lora", "disk": "/tmp"}, "disk is not of --optimizer lora"),
        ({"lora_alpha": 2.0}, "lora_alpha is of --optimizer lora"),
        ({"optimizer": "lowgrad", "base_bits": 4}, "base_bits is of --optimizer lora"),
        ({"optimizer": "lora", "lora_alpha": float("nan")}, "lora_alpha"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        TrainConfig(**options)


def test_a_model_made_anew_has_nothing_to_adapt():
    with pytest.raises(InputError, match="lora adapts a model that is trained already"):
        make(TrainConfig(optimizer="lora", model="llama-tiny"))


@pytest.mark.slow
def test_experts_are_adapted_each_and_written_merged_only(tmp_path, text, capsys):
    config = replace(named("moe-tiny", CONFIGS), selection_bias=False)
    model, out = folder_of(tmp_path / "model", config), tmp_path / "run"
    assert main(command(text, model, out, "--base-bits", "8", steps=2)) == 0
    layers = newest_weights(out).params["layers"]
    before = decoder(config).init(jax.random.key(0))["layers"]
    moved = lambda at: np.abs(at(layers) - at(before)).max(axis=(2, 3))
    assert (moved(lambda x: np.asarray(x["mlp"]["experts"]["up_proj"])) > 0).all()
    np.testing.assert_array_equal(layers["mlp"]["gate"], before["mlp"]["gate"])
    capsys.readouterr()
    assert main(["export", str(out), str(tmp_path / "adapter"), "--adapter"]) == 2
    assert "without experts" in capsys.readouterr().err
    assert main(["export", str(out), str(tmp_path / "merged")]) == 0


@pytest.mark.slow
def test_adapters_learn_from_the_answers_of_records(tmp_path, folder, capsys):
    data, out = tmp_path / "sums.jsonl", tmp_path / "run"
    rows = [{"prompt": f"{i} + 1 = ", "completion": str(i + 1)} for i in range(40)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = ("--base-bits", "4", "--accumulate", "2", "--sequence", "32")
    assert main(command(str(data), folder, out, *more)) == 0
    capsys.readouterr()
    assert main(["eval", str(out), "--json"]) == 0
    valid = json.loads((out / "summary.json").read_text())["valid_nats_per_answer_token"]
    found = json.loads(capsys.readouterr().out)["nats_per_answer_token"]
    assert found == pytest.approx(valid, rel=1e-4)
