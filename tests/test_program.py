"""Commands that are printed can be copied: by the name of the program, or by its path."""

import json
import sys
from importlib import metadata

import pytest

from springroll import program as module
from springroll.program import pip_install, program


@pytest.fixture
def installed(tmp_path, monkeypatch):
    path = tmp_path / "bin" / "springroll"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bin/springroll", "pretrain"])
    return path


def test_its_path_where_the_shell_does_not_find_it(installed, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert program() == "bin/springroll"


def test_its_name_where_the_shell_finds_it(installed, monkeypatch):
    monkeypatch.setenv("PATH", str(installed.parent))
    assert program() == "springroll"


def test_its_path_where_the_shell_finds_another(installed, tmp_path, monkeypatch):
    other = tmp_path / "springroll"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert program() == "bin/springroll"


@pytest.mark.parametrize("name", ["pytest", "-c", "gone/springroll"])
def test_its_name_where_it_was_started_in_another_way(monkeypatch, name):
    monkeypatch.setattr(sys, "argv", [name])
    assert program() == "springroll"


class Installed:
    """A distribution as `importlib.metadata` describes it."""

    def __init__(self, origin):
        self.origin = origin

    def read_text(self, name):
        assert name == "direct_url.json"
        return self.origin and json.dumps(self.origin)


def came_from(monkeypatch, origin):
    monkeypatch.setattr(metadata, "distribution", lambda name: Installed(origin))
    monkeypatch.setattr(module, "_found", lambda name, path: True)


def test_an_extra_from_an_index(monkeypatch):
    came_from(monkeypatch, None)
    assert pip_install("rl") == "pip install 'springroll[rl]'"


def test_an_extra_from_a_clone(monkeypatch):
    came_from(monkeypatch, {"url": "file:///some%20where/clone", "dir_info": {"editable": True}})
    assert pip_install("rl") == "pip install -e '/some where/clone[rl]'"


def test_an_extra_from_the_clone_in_which_it_runs(monkeypatch, tmp_path):
    came_from(monkeypatch, {"url": tmp_path.as_uri(), "dir_info": {}})
    monkeypatch.chdir(tmp_path)
    assert pip_install("hf") == "pip install '.[hf]'"


def test_pip_of_an_environment_that_is_not_active(monkeypatch, tmp_path):
    came_from(monkeypatch, None)
    monkeypatch.setattr(module, "_found", lambda name, path: False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    monkeypatch.chdir(tmp_path)
    assert pip_install("hf") == ".venv/bin/python -m pip install 'springroll[hf]'"
