"""Commands that are printed can be copied: by the name of the program, or by its path."""

import sys

import pytest

from springroll.run.program import program


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
