"""No command ends in a traceback: input, disk and memory are one line, our own faults too."""

import errno
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from springroll.cli.faults import told
from springroll.cli.main import main
from springroll.errors import InputError
from tests.cli.tiny import files, pretrain, text_file


@pytest.fixture
def raising(monkeypatch):
    """Makes `springroll eval` raise."""

    def put(error):
        def run(argv):
            raise error

        monkeypatch.setattr(importlib.import_module("springroll.cli.eval"), "run", run)

    return put


class XlaRuntimeError(RuntimeError):
    """As JAX calls it."""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("the file\nis empty"), "the file is empty"),
        (OSError(errno.ENOSPC, "No space left", "/a/b"), "/a/b: No space left"),
        (OSError(errno.EROFS, "Read-only file system", b"/a/b"), "/a/b: Read-only file system"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (OSError("odd"), "odd"),
        (PermissionError(errno.EACCES, "Permission denied", "x\x1b[31m"), None),
        (
            MemoryError("2 TiB"),
            "out of memory (2 TiB); choose a smaller model, population or batch",
        ),
        (MemoryError(), "out of memory; choose a smaller model, population or batch"),
        (XlaRuntimeError("RESOURCE_EXHAUSTED: 9 bytes\nmore"), None),
    ],
)
def test_input_disk_and_memory_are_one_line(capsys, raising, error, line):
    raising(error)
    assert main(["eval", "x"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("springroll: ") and said.count("\n") == 1 and "\x1b" not in said
    assert line is None or said == f"springroll: {line}\n"


@pytest.mark.parametrize("error", [ZeroDivisionError(), RuntimeError("so\nand so"), KeyError("k")])
def test_a_fault_of_ours_is_one_line_and_a_file(capsys, raising, error, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    raising(error)
    assert main(["eval", "x", "--json"]) == 70
    said = capsys.readouterr().err
    assert said.startswith("springroll: a fault of springroll, please report it: ")
    assert type(error).__name__ in said and said.count("\n") == 1
    report = Path(re.search(r"its traceback is in (\S+)", said)[1]).read_text()  # type: ignore[index]
    assert (
        "springroll eval x --json" in report and "Traceback" in report and "raise error" in report
    )


def test_where_a_report_cannot_be_saved_the_line_says_where_it_was(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    try:
        raise ValueError("x")
    except ValueError as error:
        line, code = told(error, ["eval"])
    assert code == 70 and line is not None
    assert f"raised at {__file__}:" in line and "No such file or directory" in line


def shell(command, **more):
    run = {"shell": True, "capture_output": True, "text": True, "executable": "/bin/bash"}
    return subprocess.run(command, **run, **more)


def test_output_that_nobody_reads_or_that_finds_no_room(tmp_path):
    help = f"{sys.executable} -m springroll --help"
    done = shell(f"{help} >/dev/full")
    assert (done.returncode, done.stderr) == (2, "springroll: No space left on device\n")
    done = shell(f"set -o pipefail; {help} | true", env=os.environ | {"PYTHONUNBUFFERED": "1"})
    assert done.stderr == "" and done.returncode in (0, 141)


@pytest.mark.parametrize("command", ["new", "resume", "eval", "sample", "replay"])
def test_a_name_that_is_too_long(capsys, tmp_path, command):
    out, text = tmp_path / ("x" * 300), text_file(tmp_path)
    line = {
        "new": pretrain(text, out, "--generations", "1"),
        "resume": ["pretrain", "--resume", "--out", str(out)],
    }.get(command, [command, str(out)])
    assert main(line) == 2
    said = capsys.readouterr().err
    why = "names have 255 bytes at most" if command == "sample" else "File name too long"
    assert why in said and said.count("\n") == 1


def test_a_folder_that_nothing_may_be_written_to(capsys, tmp_path):
    text = text_file(tmp_path)
    (tmp_path / "file").write_text("")
    assert main(pretrain(text, tmp_path / "file" / "run", "--generations", "1")) == 2
    said = capsys.readouterr().err
    assert "Not a directory" in said and said.count("\n") == 1
    assert main(pretrain(text, Path("/proc/run"), "--generations", "1")) == 2
    said = capsys.readouterr().err
    assert "cannot write the run folder" in said and said.count("\n") == 1


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "\xff", "nul\0"])
def test_json_of_any_kind_is_one_line(capsys, tmp_path, content):
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    before = files(tmp_path)
    for line in (["eval", str(tmp_path)], ["pretrain", "--resume", "--out", str(tmp_path)]):
        assert main(line) == 2
        said = capsys.readouterr().err
        assert "config.json is" in said and said.count("\n") == 1
    assert files(tmp_path) == before
