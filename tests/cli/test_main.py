"""The command itself: what it lists, what it imports, how it says that the user is wrong."""

import importlib
import json
import subprocess
import sys

import pytest

import springroll
from springroll.cli import main as cli
from springroll.errors import InputError
from tests.cli.tiny import outcome, start


@pytest.fixture
def command(monkeypatch):
    """Puts a function behind the name `eval`."""

    def put(run):
        monkeypatch.setattr(importlib.import_module("springroll.cli.eval"), "run", run)

    return put


def test_help_lists_every_command(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, (_, summary) in cli.COMMANDS.items():
        assert f"  {name} " in out and summary in out
    assert cli.main(["-h"]) == 0
    assert capsys.readouterr().out == out


def test_no_command_is_bad_input(capsys):
    assert cli.main([]) == 2
    assert "usage: springroll COMMAND" in capsys.readouterr().out


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"springroll {springroll.__version__}\n"


@pytest.mark.parametrize(
    ("given", "meant"), [("pretran", "pretrain"), ("Sample", "sample"), ("docter", "doctor")]
)
def test_misspelt_commands_are_suggested(capsys, given, meant):
    assert cli.main([given]) == 2
    said = capsys.readouterr().err
    assert said == f"springroll: unknown command {given!r}; did you mean {meant!r}?\n"


def test_a_command_that_resembles_none(capsys):
    assert cli.main(["xyz"]) == 2
    assert "there are pretrain, train, finetune, rl, plan, eval" in capsys.readouterr().err


def test_bad_input_is_one_line_without_a_traceback(capsys, command):
    def fails(argv):
        raise InputError("the file\nis empty")

    command(fails)
    assert cli.main(["eval", "x"]) == 2
    assert capsys.readouterr().err == "springroll: the file is empty\n"


def test_ctrl_c_outside_the_loop(command):
    def interrupted(argv):
        raise KeyboardInterrupt

    command(interrupted)
    assert cli.main(["eval"]) == 130


def test_arguments_and_exit_code_pass_through(command):
    seen = []
    command(lambda argv: seen.append(argv) or 7)
    assert cli.main(["eval", "a", "--b"]) == 7
    assert seen == [["a", "--b"]]


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself(capsys, name):
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: springroll {name}")
    assert "--help" in out


def test_nothing_imports_jax_before_a_command_runs():
    """All modules of the commands, all recipes, all --help: no JAX, no NumPy."""
    code = (
        "import contextlib, importlib, io, json, sys\n"
        "from springroll.cli.jobs import JOBS, job_of\n"
        "from springroll.cli.main import COMMANDS, main\n"
        "[make() for job in JOBS for make in job_of(job).recipes.values()]\n"
        "for name in COMMANDS:\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "        main([name, '--help'])\n"
        "print(json.dumps([m for m in ('jax', 'numpy', 'optax') if m in sys.modules]))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == []


def test_the_real_command():
    code, said = outcome(start(["pretrain", "--pop-sise", "4"]))
    assert code == 2
    assert said == "springroll: unknown option --pop-sise; did you mean --pop-size?\n"


def test_an_argument_that_is_missing_is_told_in_words(capsys):
    assert cli.main(["eval"]) == 2
    assert capsys.readouterr().err == (
        "springroll: an argument is missing: The folder of a run (see springroll eval --help)\n"
    )
