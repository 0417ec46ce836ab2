"""Folders by name: as they are, downloaded, or one line that says why not."""

import re
import socket
import sys
import types

import pytest

from springroll import hub
from springroll.errors import InputError
from springroll.hub import hf_folder, reachable
from springroll.program import pip_install


@pytest.fixture
def downloads(monkeypatch, tmp_path):
    """A stand-in for the package `huggingface_hub`: what it was asked for."""
    asked = []

    def snapshot_download(name, *, local_files_only, allow_patterns):
        asked.append((name, local_files_only))
        assert "*.safetensors" in allow_patterns
        if "absent" in name:
            raise RuntimeError("404\nmany lines")
        (tmp_path / "model.safetensors").touch()
        return str(tmp_path)

    def hf_hub_download(name, file, *, local_files_only):
        asked.append((name, file, local_files_only))
        return str(tmp_path / file)

    package = types.SimpleNamespace(
        snapshot_download=snapshot_download, hf_hub_download=hf_hub_download
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", package)
    monkeypatch.setattr(hub, "reachable", lambda: True)
    return asked


def test_a_folder_is_itself(tmp_path, downloads, monkeypatch):
    assert hf_folder(tmp_path) == hf_folder(str(tmp_path)) == tmp_path
    (tmp_path / "own" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert str(hf_folder("own/model")) == "own/model"  # also where a name would look the same
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hf_folder("~/own") == tmp_path / "own"
    assert downloads == []


def test_a_name_is_downloaded(downloads, tmp_path, monkeypatch):
    assert hf_folder("Qwen/Qwen2.5-0.5B") == tmp_path
    monkeypatch.setattr(hub, "reachable", lambda: False)
    assert hf_folder("Qwen/Qwen2.5-0.5B") == tmp_path  # was downloaded before
    assert downloads == [("Qwen/Qwen2.5-0.5B", False), ("Qwen/Qwen2.5-0.5B", True)]


def test_one_of_many_files_is_downloaded_alone(downloads, tmp_path):
    assert hf_folder("BlinkDL/rwkv7-g1/a.pth") == tmp_path / "a.pth"
    assert downloads == [("BlinkDL/rwkv7-g1", "a.pth", False)]


@pytest.mark.parametrize(
    "name", ["nope", "./a/b", "a/b/c", "/a/b", "", "a/", "../b", "a b/c", "a/b/c.bin"]
)
def test_what_is_neither_is_one_line(name, downloads, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = "is no folder here, and no name as OWNER/NAME" if name else "expected a path"
    with pytest.raises(InputError, match=said):
        hf_folder(name)
    assert downloads == []


def test_a_file_is_refused(tmp_path):
    (tmp_path / "x").write_text("")
    (tmp_path / "x.pth").write_text("")
    assert hf_folder(tmp_path / "x.pth") == tmp_path / "x.pth"  # a model by itself
    with pytest.raises(InputError, match="is a file; give the folder"):
        hf_folder(tmp_path / "x")


def test_failures_are_one_line(downloads, monkeypatch):
    with pytest.raises(InputError, match="cannot download a/absent: 404; where it can be, run"):
        hf_folder("a/absent")
    monkeypatch.setattr(hub, "reachable", lambda: False)
    with pytest.raises(
        InputError, match=r"huggingface\.co cannot be reached from here, and it was"
    ):
        hf_folder("a/absent")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="'huggingface_hub': " + re.escape(pip_install("hf"))):
        hf_folder("a/absent")


def test_whether_the_hub_can_be_reached_is_found_at_once(monkeypatch):
    for key in ("HTTPS_PROXY", "https_proxy", "HF_ENDPOINT"):
        monkeypatch.delenv(key, raising=False)
    for key in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(key, raising=False)
    closed = []
    connection = types.SimpleNamespace(close=lambda: closed.append(True))
    monkeypatch.setattr(socket, "create_connection", lambda *_, timeout: connection)
    assert reachable() and closed

    def refuse(*_, timeout):
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    assert not reachable()
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror")
    assert reachable()  # a mirror is left to the package
