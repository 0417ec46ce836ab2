"""An adapter holds the nearest change of its rank, and says what it leaves out."""

import errno
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from springroll.errors import InputError
from springroll.models.hf import lora
from springroll.models.hf.decoder import hf_config
from springroll.models.hf.files import is_hf_folder, open_hf, read_config
from springroll.models.hf.load import read_params
from springroll.models.hf.lora import WEIGHTS, Adapter, save_adapter, save_lora
from tests.models.test_hf import config_of, tensors_of, write

RANK = 3


@pytest.fixture
def base(tmp_path):
    (tmp_path / "base").mkdir()
    values = config_of("tied")
    return write(tmp_path / "base", values, tensors_of(hf_config(values)))


def changed(base, rank):
    """The weights of a folder with a change of that rank in every matrix of a layer."""
    config = hf_config(config_of("tied"))
    draw = np.random.default_rng(0)

    def change(weight):
        if weight.ndim < 3:
            return weight
        layers, rows, columns = weight.shape
        left, right = (
            draw.normal(size=(layers, rows, rank)),
            draw.normal(size=(layers, rank, columns)),
        )
        return (weight + 0.1 * left @ right).astype(np.float32)

    return config, jax.tree.map(change, read_params(base, config))


def formed(folder, name):
    found = load_file(folder / WEIGHTS)
    stem = f"base_model.model.{name}"
    return found[f"{stem}.lora_B.weight"] @ found[f"{stem}.lora_A.weight"]


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"base_model_name_or_path": "Qwen/Qwen3-8B"}, "an adapter of 'Qwen/Qwen3-8B', and no mod"),
        ({"base_model_name_or_path": "x" * 999}, "an adapter of 'xxx.*, and no model"),
        ({"base_model_name_or_path": None}, "an adapter, whose base it does not name, and no"),
    ],
)
def test_an_adapter_in_the_place_of_a_model_is_named(tmp_path, about, said):
    weights = tmp_path / "adapter_model.safetensors"
    save_file({"base_model.model.a.lora_A.weight": np.zeros((2, 2), np.float32)}, weights)
    (tmp_path / "adapter_config.json").write_text(json.dumps(about))
    for place in (tmp_path, weights):
        for reads in (read_config, is_hf_folder, open_hf):
            with pytest.raises(InputError, match=f"holds {said}") as caught:
                reads(place)
            assert len(str(caught.value)) < 500 + len(str(tmp_path))


def test_a_change_of_the_rank_is_kept_whole(base, tmp_path):
    config, params = changed(base, RANK)
    losses = save_lora(tmp_path / "lora", config, params, base, RANK)
    assert max(loss.relative for loss in losses.values()) < 1e-5
    name = "model.layers.1.self_attn.k_proj"
    before = load_file(base / "model.safetensors")[f"{name}.weight"]
    after = before + formed(tmp_path / "lora", name)
    np.testing.assert_allclose(after, params["layers"]["self_attn"]["k_proj"][1], atol=1e-5)
    about = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert about["r"] == about["lora_alpha"] == RANK
    assert set(about["target_modules"]) == {
        *(f"{x}_proj" for x in "qkvo"),
        *(f"{x}_proj" for x in ("gate", "up", "down")),
    }


def test_what_is_left_out_is_the_rest_of_the_singular_values(base, tmp_path):
    config, params = changed(base, 6)
    params["norm"] = params["norm"] + 1  # which no adapter has
    losses = save_lora(tmp_path / "lora", config, params, base, RANK)
    before = read_params(base, config)["layers"]["mlp"]["up_proj"]
    values = np.linalg.svd(params["layers"]["mlp"]["up_proj"] - before, compute_uv=False)
    expected = np.sqrt(np.square(values[:, RANK:]).sum() / np.square(values).sum())
    np.testing.assert_allclose(losses["up_proj"].relative, expected, rtol=1e-4)
    assert losses["norm"].relative == 1.0
    assert losses["embed_tokens"].relative == 0.0
    with pytest.raises(InputError, match="already holds adapter_model"):
        save_lora(tmp_path / "lora", config, params, base, RANK)


def test_an_adapter_that_a_full_disk_cut_short_is_written_again(base, tmp_path, monkeypatch):
    config, params = changed(base, RANK)

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(lora, "replacing", full)
        with pytest.raises(OSError, match="No space left"):
            save_lora(tmp_path / "lora", config, params, base, RANK)
    save_lora(tmp_path / "lora", config, params, base, RANK)
    assert (tmp_path / "lora" / WEIGHTS).exists()


def test_a_base_of_the_hub_keeps_its_name(base, tmp_path, monkeypatch):
    """Not that of the folder that it was downloaded to, which is of one machine."""
    config, params = changed(base, RANK)
    monkeypatch.setattr(lora, "hf_folder", {"Own/Model": base}.__getitem__)
    save_lora(tmp_path / "change", config, params, "Own/Model", RANK)
    trained = {"layers": {"mlp": {"up_proj": {"lora_A": np.zeros((2, RANK, 1)), "lora_B": []}}}}
    trained["layers"]["mlp"]["up_proj"]["lora_B"] = np.zeros((2, 1, RANK))
    save_adapter(tmp_path / "own", config, trained, "Own/Model", Adapter(RANK, 2.0))
    for folder in (tmp_path / "change", tmp_path / "own"):
        about = json.loads((folder / "adapter_config.json").read_text())
        assert about["base_model_name_or_path"] == "Own/Model"


def test_models_with_experts_are_refused(base, tmp_path):
    with pytest.raises(InputError, match="decoders without experts"):
        save_lora(tmp_path / "lora", hf_config(config_of("olmoe")), {}, base, RANK)
    assert not (tmp_path / "lora").exists()
