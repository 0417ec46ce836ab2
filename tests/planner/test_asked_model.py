"""Models that are asked about: names, folders, lone files, names on the hub."""

import json

import pytest

from springroll import hub
from springroll.errors import InputError
from springroll.models.decoder_config import CONFIGS
from springroll.planner.asked_model import config_at, named_model

LLAMA = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


def test_a_lone_file_is_read_as_its_folder_is(tmp_path):
    for name in ("config.json", "other.json"):
        (tmp_path / name).write_text(json.dumps(LLAMA))
    found = {config_at(tmp_path / part)[0] for part in ("", "config.json", "other.json")}
    assert len(found) == 1 and found.pop().hidden == 32
    assert config_at("qwen3-8b") == (CONFIGS["qwen3-8b"], None)


def test_a_configuration_and_a_folder_are_models_too(tmp_path):
    config = CONFIGS["llama-60m"]
    assert named_model(config)[1] is config
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    name, found = named_model(tmp_path)
    assert name == str(tmp_path) and found.hidden == 32
    with pytest.raises(InputError, match="did you mean llama-60m"):
        named_model("llama-60b")


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"model_type": "xyz"}', '{"model_type": "llama"}', "\xff\x00"]
)
def test_a_file_that_is_no_config_is_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError) as refused:
        named_model(tmp_path / "config.json")
    assert "config.json" in str(refused.value) and "\n" not in str(refused.value)


def test_of_a_name_on_the_hub_only_the_config_is_asked_for(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    asked = []

    def downloaded(name, file):
        asked.append((name, file))
        return tmp_path / file

    monkeypatch.setattr(hub, "_downloaded", downloaded)
    assert named_model("Qwen/Qwen3-8B")[1].hidden == 32
    assert asked == [("Qwen/Qwen3-8B", "config.json")]


@pytest.mark.parametrize("name", ["./nowhere", "a/b/c", "../x", "/no/such/folder", "a/b.pth"])
def test_what_is_no_name_of_the_hub_is_one_line(name):
    with pytest.raises(InputError, match=r"no folder or config|cannot download"):
        named_model(name)


def test_without_a_network_it_says_so(monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda: False)
    with pytest.raises(InputError, match=r"cannot be reached from here.*hf download"):
        named_model("no-such-owner/no-such-model")
