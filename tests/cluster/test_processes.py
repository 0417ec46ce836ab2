"""Runs on several processes have the bytes of a run on one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from springroll.run.journal import Journal

TINY = (
    "--pop-size 64 --hidden 16 --tokens-per-member 4 --valid-streams 2 --valid-tokens 8 "
    "--devices 1 --eval-every 1000"
).split()


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"line {i} of {i * i}\n" for i in range(2000)))
    return path


def command(text: Path, out: Path, *options: str) -> list[str]:
    return ["pretrain", "--data", str(text), "--out", str(out), *TINY, *options]


def springroll(*arguments: str, seconds: float = 240) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-m", "springroll", *arguments]
    return subprocess.run(whole, capture_output=True, text=True, timeout=seconds, check=False)


def same_bytes(a: Path, b: Path, generations: int) -> None:
    assert (a / "journal").read_bytes() == (b / "journal").read_bytes()
    name = f"checkpoints/{generations:09}.safetensors"
    assert (a / name).read_bytes() == (b / name).read_bytes()


def started(text: Path, out: Path, port: int, rank: int, *options: str) -> subprocess.Popen[str]:
    where = ["--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process", str(rank)]
    whole = [sys.executable, "-m", "springroll", *command(text, out, *where, *options)]
    return subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def grown(journal: Path, size: int) -> None:
    """Wait until the journal has more bytes."""
    until = time.monotonic() + 120
    while not (journal.exists() and journal.stat().st_size > size):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_two_processes_have_the_bytes_of_one_and_only_the_first_writes(text, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert springroll(*command(text, one, "--generations", "6")).returncode == 0
    ran = springroll("launch", "-n", "2", "--", *command(text, two, "--generations", "6"))
    assert ran.returncode == 0, ran.stderr
    same_bytes(one, two, 6)
    assert ran.stderr.count("generation 6 ") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "options"),
    [
        (3, ["--pop-size", "62"]),
        (2, ["--precision", "compat"]),
        (2, ["--precision", "float32", "--block", "8"]),
        (3, ["--precision", "float32", "--block", "4"]),
    ],
)
def test_shares_may_be_uneven_and_numbers_of_any_kind(text, tmp_path, processes, options):
    one, many = tmp_path / "one", tmp_path / "many"
    options = [*options, "--generations", "5"]
    assert springroll(*command(text, one, *options)).returncode == 0
    ran = springroll("launch", "-n", str(processes), "--", *command(text, many, *options))
    assert ran.returncode == 0, ran.stderr
    same_bytes(one, many, 5)
    more = [*options, "--resume", "--generations", "7"]
    ran = springroll(*command(text, many, *more))  # goes on with one
    assert ran.returncode == 0, ran.stderr
    assert springroll(*command(text, one, *more)).returncode == 0
    same_bytes(one, many, 7)


@pytest.mark.slow
def test_a_follower_that_is_killed_ends_the_run_which_goes_on_to_the_same_bytes(text, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    options = ["--generations", "1000000", "--patience", "4"]
    both = [started(text, two, 27431, rank, *options) for rank in range(2)]
    journal = two / "journal"
    grown(journal, 4000)
    both[1].send_signal(signal.SIGKILL)
    both[1].communicate()
    error = both[0].communicate(timeout=120)[1]
    assert both[0].returncode == 3, error
    assert "process 1 of 2 is gone" in error
    assert "Traceback" not in error
    with Journal.read_only(journal) as written:
        more = str(len(written) + 2)
    assert springroll(*command(text, two, "--resume", "--generations", more)).returncode == 0
    assert springroll(*command(text, one, "--generations", more)).returncode == 0
    same_bytes(one, two, int(more))


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--precision", "compat"]])
def test_a_follower_that_is_started_again_catches_up(text, tmp_path, options):
    one, two = tmp_path / "one", tmp_path / "two"
    options = [*options, "--generations", "600"]
    both = [started(text, two, 27433, rank, *options) for rank in range(2)]
    for size in (4_000, 40_000):
        grown(two / "journal", size)
        both[1].send_signal(signal.SIGKILL)
        both[1].communicate()
        both[1] = started(text, two, 27433, 1, *options)
    error = both[0].communicate(timeout=120)[1]
    assert both[0].returncode == 0, error
    assert error.count("process 1 was started again") == 2
    assert both[1].communicate(timeout=60)[1] == ""
    assert both[1].returncode == 0
    assert springroll(*command(text, one, *options)).returncode == 0
    same_bytes(one, two, 600)


@pytest.mark.slow
def test_where_the_first_process_is_killed_the_others_end_with_a_line(text, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    both = [started(text, two, 27435, rank, "--generations", "1000000") for rank in range(2)]
    grown(two / "journal", 4000)
    both[0].send_signal(signal.SIGKILL)
    error = both[1].communicate(timeout=60)[1]
    assert both[1].returncode == 3
    assert error.startswith("springroll: process 0 is gone")
    assert error.count("\n") == 1
    both[0].communicate()
    with Journal.read_only(two / "journal") as written:
        more = str(len(written) + 2)
    assert springroll(*command(text, two, "--resume", "--generations", more)).returncode == 0
    assert springroll(*command(text, one, "--generations", more)).returncode == 0
    same_bytes(one, two, int(more))


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "others"), [(0, "the other processes"), (1, "process 0")])
def test_processes_that_do_not_come_are_waited_for_and_told_in_a_line(text, tmp_path, rank, others):
    alone = started(text, tmp_path / "x", 27437, rank, "--patience", "3", "--generations", "2")
    error = alone.communicate(timeout=120)[1]
    assert alone.returncode == 2
    assert error.startswith(f"springroll: {others} did not come to 127.0.0.1:27437 within 3 s")
    assert error.count("\n") == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_what_cannot_be_is_refused_in_one_line_by_all(text, tmp_path):
    short = ["--generations", "2", "--patience", "5"]
    for options, line in {
        ("--engine", "stream"): "this run is not shared by processes",
        ("--pop-size", "2"): "2 processes cannot share 1 pairs",
    }.items():
        ran = springroll(
            "launch", "-n", "2", "--", *command(text, tmp_path / "x", *short, *options)
        )
        assert ran.returncode == 2
        assert line in ran.stderr
        assert "Traceback" not in ran.stderr
        assert not (tmp_path / "x").exists()
    assert os.listdir(tmp_path) == []


def test_bad_calls_are_one_line(text, tmp_path):
    for arguments, line in {
        ("launch", "-n", "2"): "no command to start",
        ("launch", "-n", "0", "--", "pretrain"): "processes is 0; it must be",
        (*command(text, tmp_path / "x"), "--cluster", "jax"): "--cluster jax needs --coordinator",
        (*command(text, tmp_path / "x"), "--process", "1"): "are missing",
    }.items():
        ran = springroll(*arguments)
        assert ran.returncode == 2
        assert line in ran.stderr
        assert ran.stderr.count("\n") == 1
