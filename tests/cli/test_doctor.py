"""`springroll doctor`: what it reports, and that a failed self-test is a failure."""

import json
import tomllib
from pathlib import Path

import jax
import pytest

from springroll.cli import doctor
from springroll.cli import doctor as self_test
from springroll.cli.doctor import Check
from springroll.cli.main import main
from springroll.program import pip_install

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.fixture(scope="module")
def checks():
    return self_test.self_test()


def test_the_self_test_passes(checks):
    assert len(checks) == 2
    assert [check.detail for check in checks if not check.passed] == []


def test_the_report(monkeypatch, capsys, checks):
    monkeypatch.setattr(self_test, "self_test", lambda: checks)
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert jax.__version__ in shown and "cpu" in shown
    assert shown.count("(used)") == 1
    assert shown.count("ok: ") == 2


def test_the_report_as_json(monkeypatch, capsys, checks):
    monkeypatch.setattr(self_test, "self_test", lambda: checks)
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["devices"]) == 4
    assert found["versions"]["jax"] == jax.__version__
    assert found["integers"]["chosen"] in found["integers"]["operations_per_second"]
    assert all(check["passed"] for check in found["self_test"])


def test_a_failed_check_is_a_failure(monkeypatch, capsys):
    monkeypatch.setattr(self_test, "self_test", lambda: [Check("sums", False, "2 + 2 is 5")])
    assert main(["doctor"]) == 1
    output = capsys.readouterr()
    assert "FAILED: sums (2 + 2 is 5)" in output.out
    assert "the self-test failed" in output.err


def test_a_check_that_raises_has_failed():
    def check():
        raise OSError("no room")

    assert self_test._tried("room", check) == Check("room", False, "OSError: no room")


def test_resuming_is_really_compared(monkeypatch):
    """A second half that sees other data must be noticed."""
    trained = self_test._train

    def disturbed(path, config, task):
        if path.name == "parts":
            path.mkdir(exist_ok=True)
            for name in ("journal", "checkpoints/000000002.safetensors"):
                (path / name).parent.mkdir(exist_ok=True)
                (path / name).write_bytes(b"other")
        else:
            trained(path, config, task)

    monkeypatch.setattr(self_test, "_train", disturbed)
    passed, detail = self_test.resumed_equals_undisturbed()
    assert not passed and "journal" in detail


def test_extras_are_those_of_the_project():
    declared = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]
    found = doctor.extras()
    assert found.keys() == declared.keys()
    assert "pytest" not in found["test"]


def test_a_missing_extra_names_its_pip_line(monkeypatch, capsys, checks):
    monkeypatch.setattr(self_test, "self_test", lambda: checks)
    monkeypatch.setattr(doctor, "extras", lambda: {"data": ["datasets"]})
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "lacks datasets" in shown
    assert f"is installed by: {pip_install('data')}\n" in shown
