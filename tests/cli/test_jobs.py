"""A fifth job is one folder and one line: every command reads its record, and none knows it."""

import dataclasses
import json
import sys
import types
from dataclasses import dataclass
from typing import ClassVar

import pytest
from rich.table import Table

from springroll.cli import jobs
from springroll.cli.main import main
from springroll.run.config import RunConfig
from springroll.run.job import Evaluation, Explained, Job, Prepared, SavedWeights
from springroll.run.report import closing_rows
from springroll.run.weights import load_weights
from tests.run.toy import WIDTH, toy


@dataclass(frozen=True, kw_only=True)
class SquareConfig(RunConfig):
    """Options of the job."""

    command: ClassVar[str] = "square"

    width: int = WIDTH
    """Numbers to learn."""


def task_of(config):
    return toy(seed=config.seed, width=config.width, validate=None)


def saved(run):
    import jax

    state, _ = jax.eval_shape(task_of(run.config).init)
    return SavedWeights(state["weights"], "state/weights", lambda part: part)


def evaluate(run, options):
    weights = load_weights(run, saved(run), best=options.best)
    square = float((weights.params**2).sum())
    figures = {"run": run.path, "generation": weights.generation, "square": square}
    return Evaluation(figures, Table("square"), weights.notes)


def sample(run, options):
    raise run.refused("which writes no text")


def explain(config):
    import jax.numpy as jnp

    return Explained(
        lambda w, x: x @ w, jnp.ones((config.width, 2)), (jnp.ones((3, config.width)),)
    )


JOB = Job(
    name="square",
    description="Numbers learn to be small.",
    config=SquareConfig,
    recipes={"short": lambda: SquareConfig(generations=2)},
    build=lambda config: Prepared(config=config, task=task_of(config), opening=["numbers"]),
    report=lambda out, summary: closing_rows(out, summary),
    evaluate=evaluate,
    sample=sample,
    replay=lambda run: task_of(run.config),
    weights=saved,
    explain=explain,
)


@pytest.fixture(autouse=True)
def square(monkeypatch):
    """The folder, and the line."""
    room = types.ModuleType("springroll.square")
    room.JOB = JOB  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "springroll.square", room)
    monkeypatch.setitem(jobs.JOBS, "square", "make numbers small")
    main_module = sys.modules["springroll.cli.main"]
    command = main_module.Command("springroll.cli.job", "make numbers small")
    monkeypatch.setitem(main_module.COMMANDS, "square", command)


def test_every_command_reads_the_record(tmp_path, capsys):
    out = str(tmp_path / "run")
    assert main(["square", "--generations", "3", "--out", out]) == 0
    said = capsys.readouterr()
    assert "numbers" in said.err and "3 generations" in said.out
    assert main(["square", "--generations", "4", "--out", out, "--resume"]) == 0
    capsys.readouterr()
    assert main(["eval", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["generation"] == 4
    assert main(["explain", out]) == 0
    assert "low-rank" in capsys.readouterr().out


def test_what_a_job_has_no_answer_for_is_one_line(tmp_path, capsys):
    out = str(tmp_path / "run")
    assert main(["square", "--recipe", "short", "--out", out]) == 0
    for command, why in (
        (["sample", out], "writes no text"),
        (["export", out, str(tmp_path / "x")], "no form that transformers knows"),
        (["eval", out, "--best"], "keeps no best weights"),
    ):
        capsys.readouterr()
        assert main(command) == 2
        said = capsys.readouterr().err
        assert why in said and said.count("\n") == 1


def test_a_used_folder_is_refused_before_anything_is_built(tmp_path, capsys, monkeypatch):
    out = str(tmp_path / "run")
    assert main(["square", "--recipe", "short", "--out", out]) == 0
    never = dataclasses.replace(JOB, build=lambda config: pytest.fail("was built"))
    monkeypatch.setattr(sys.modules["springroll.square"], "JOB", never)
    assert main(["square", "--recipe", "short", "--out", out]) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_a_run_of_a_job_that_is_not_there(tmp_path, capsys, monkeypatch):
    out = str(tmp_path / "run")
    assert main(["square", "--recipe", "short", "--out", out]) == 0
    monkeypatch.delitem(jobs.JOBS, "square")
    capsys.readouterr()
    assert main(["eval", out]) == 2
    assert "is of a run of springroll square" in capsys.readouterr().err


@pytest.mark.parametrize("command", [None, ["square"]])
def test_a_config_whose_job_is_no_name(tmp_path, capsys, command):
    stored = {"run_id": "x", "command": command, "config": {}}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    for line in (["eval", str(tmp_path)], ["square", "--resume", "--out", str(tmp_path)]):
        assert main(line) == 2
        said = capsys.readouterr().err
        assert "'command' is not a text" in said and said.count("\n") == 1
