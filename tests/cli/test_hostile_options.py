"""Every option of every command with hostile values, generated from the declarations: a value is
taken, or the command ends with exit code 2 and one line, and nothing is written."""

import dataclasses
import functools
import typing

import pytest

from springroll.cli import bench, doctor, export, job, options, plan, replay
from springroll.cli import explain as explain_command
from springroll.cli import main as cli
from springroll.cli.jobs import JOBS, job_of
from springroll.planner import measured_rates
from springroll.rl.tuning import Tuning
from springroll.run.config import check_sizes
from springroll.run.job import EvalOptions, SampleOptions
from springroll.run.options import Range, number_kind, number_kinds

LARGE = str(10**30)  # for a float nothing out of the ordinary
HOSTILE = ["nan", "inf", "-inf", "-1", "0", "1e-300", "1e308", LARGE, "", "abc", "\x1b[31m"]
HOSTILE += ["9" * 5000, "\u0664\u0666", "1e999", "0x10", "None", "a\nb", f"{'9' * 400}GiB", "-0.0"]
NEVER = {
    "nan",
    "inf",
    "-inf",
    "1e308",
    str(10**30),
    "",
    "abc",
    "\x1b[31m",
    "9" * 5000,
    "\u0664\u0666",
}
KINDS = {name: job_of(name).config for name in JOBS} | {
    "plan": plan.PlanOptions,
    "eval": EvalOptions,
    "sample": SampleOptions,
    "replay": replay.ReplayOptions,
    "export": export.ExportOptions,
    "explain": explain_command.ExplainOptions,
    "doctor": doctor.DoctorOptions,
    "bench": bench.BenchOptions,
}
NEEDED = {"eval": ["absent"], "sample": ["absent"], "replay": ["absent"], "explain": ["absent"]}
NEEDED |= {"export": ["absent", "model"]}  # arguments without which there is no command
RUNNING = "does not exist"  # what a command on a run says once its options are taken
TAKEN = "the options were taken"
FREE = 1 << 40  # bytes of memory there are


RATES = functools.cache(measured_rates.quick_rates)  # measured once


class Taken(BaseException):
    """The options were taken; the command would begin now."""


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch, tmp_path):
    """In an empty folder, with commands that end where their work would begin."""

    def taken(*arguments, **options):
        raise Taken

    def run_job(job, config, console=None):
        check_sizes(config, FREE)
        raise Taken

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job, "run_job", run_job)
    monkeypatch.setattr("springroll.planner.alternatives.capacity", taken)
    monkeypatch.setattr(measured_rates, "quick_rates", RATES)
    monkeypatch.setattr("springroll.cli.doctor.self_test", taken)
    monkeypatch.setattr("springroll.cli.doctor.integer_speed", taken)
    monkeypatch.setattr(bench, "measure", taken)


def flags(command):
    """Every option of a command by its flag."""
    yield from options._flags(KINDS[command]).items()
    if command in JOBS:
        yield "--recipe", options.Flag(str)


def ended(command, arguments, capfd, tmp_path):
    """(what is wrong with how the command ended, its line or `TAKEN`)."""
    try:
        code = cli.main([command, *NEEDED.get(command, []), *arguments])
    except Taken:
        code = None
    out, line = capfd.readouterr()
    if [*tmp_path.iterdir()]:
        return f"{[*tmp_path.iterdir()]} was written", line
    if code in (None, 0):
        return "", TAKEN
    safe = line[:-1].isprintable() and line.startswith("springroll: ") and line.endswith("\n")
    if code != 2 or out or not safe or len(line) > 2100:
        return f"exit code {code}, {line[:300]!r}", line
    return "", TAKEN if RUNNING in line else line


@pytest.mark.parametrize("command", KINDS)
def test_every_option_takes_a_hostile_value_or_refuses_it_in_one_line(command, capfd, tmp_path):
    wrong = []
    for place, (flag, about) in enumerate(flags(command)):
        number = about.hint is not bool and number_kind(about.hint)
        for value in HOSTILE if about.hint is not bool else HOSTILE[-2:]:
            spelt = [flag, value] if place % 2 else [f"{flag}={value}"]
            fault, line = ended(command, spelt, capfd, tmp_path)
            never = value in NEVER and not (number and number.kind is float and value == LARGE)
            if number and never and line == TAKEN:
                fault = "taken"
            wrong += [(flag, value[:20], fault)] if fault else []
    assert not wrong


@pytest.mark.parametrize("command", ["plan", "explain", "bench", "eval", "sample", "replay"])
def test_every_argument_that_is_no_option_too(command, capfd, tmp_path, monkeypatch):
    monkeypatch.setitem(NEEDED, command, NEEDED.get(command, [])[1:])
    ends = {value: ended(command, [value], capfd, tmp_path)[0] for value in HOSTILE}
    assert not {value[:20]: fault for value, fault in ends.items() if fault}


@pytest.mark.parametrize("kind", [*KINDS.values(), Tuning])
def test_every_number_is_declared_with_a_range_that_is_bounded(kind):
    parts = [
        kind,
        *(h for h in typing.get_type_hints(kind).values() if dataclasses.is_dataclass(h)),
    ]
    for part in parts:
        fields = {field.name: field for field in dataclasses.fields(part)}
        for name, number in number_kinds(part).items():
            range = fields[name].metadata.get("range")
            assert isinstance(range, Range), f"{name}: declare it, as in option(1, COUNT)"
            bad = [float("nan"), float("inf"), -float("inf"), 1e308, 1e-300, 10**30, -(10**30)]
            assert not [value for value in bad if value in range and isinstance(value, number.kind)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "pretrain --hidden 10000000",
            "the weights (hidden 10,000,000, n_layers 1) and the members' memories and texts "
            "(pop_size 1,024) would take 1.07 PiB of memory; 1 TiB are left",
        ),
        ("pretrain --hidden 99999999999999999999999", "hidden is 99999999999999999999999; it must"),
        ("pretrain --pop-size 10000000000", "pop_size is 10000000000; it must be at most 2,147,4"),
        ("pretrain --pop-size 2147483646 --hidden 4096", "(pop_size 2,147,483,646) would take 8.0"),
        ("pretrain --n-layers 2147483647", "n_layers 2,147,483,647) and the members"),
        ("pretrain --valid-tokens 0", "valid_tokens is 0; it must be at least 1"),
        ("pretrain --devices 0", "devices is 0; it must be from 1 to 1,024"),
        ("pretrain --devices -1", "devices is -1; it must be from 1 to 1,024"),
        ("pretrain --lr inf", "lr is inf; it must be above 0"),
        ("pretrain --valid-streams 0", "valid_streams is 0; it must be at least 1"),
        ("pretrain --members-per-chunk -3", "members_per_chunk is -3; it must be at least 1"),
        ("pretrain --sigma 1e-300", "sigma is 1e-300; floats of 32 bits hold 1.2e-38 to 3.4e+38"),
        ("pretrain --lr 1e308", "lr is 1e+308; floats of 32 bits hold"),
        ("train --tokens 1000000000000", "sequence is 1000000000000; it must be at most 2,147,48"),
        ("train --batch 2147483647 --sequence 4096", "sequence 4,096) would take 8 TiB"),
        ("finetune --prompts 2147483647 --model x", "max_tokens 1) would take 2 TiB"),
        ("rl --width 2147483647", "the policy (width 2,147,483,647, layers 3) and the episodes"),
        ("rl --layers 2147483647", "layers 2,147,483,647) and the episodes of a generation"),
        ("rl --workers 2000", "workers is 2000; it must be from 1 to 1,024"),
        ("rl --timeout 1e30", "timeout is 1e+30; it must be above 0 and at most 1,000,000"),
        ("rl --tune --trials 1", "trials is 1; it must be from 2 to 1,000,000"),
        ("rl --tune --factor 1e3", "--factor is '1e3'; expected a whole number"),
        ("rl --seconds 1e30", "seconds is 1e+30; it must be a number of seconds, from 0 to 10^9"),
        ("replay --generations -1", "generations is -1; it must be 0 or more"),
        ("sample --length 2147483647", "a text of length 2,147,483,647 would take 32 GiB"),
        ("explain egg --hidden 32768", "the norms of precision int8 count in 32 bits, so that it"),
        ("plan --sequence 0", "sequence is 0; it must be at least 1"),
        ("plan --host-memory 99999999999TiB", "host_memory is '99999999999TiB'; no machine has"),
    ],
)
def test_what_no_memory_holds_and_what_means_nothing(line, message, capfd, tmp_path, monkeypatch):
    monkeypatch.setattr("springroll.memory.host_memory", lambda: 1 << 30)
    command, *arguments = line.split()
    monkeypatch.setitem(NEEDED, "explain", [])
    fault, said = ended(command, arguments, capfd, tmp_path)
    assert message in said and not fault


def test_the_out_folder_has_a_name(capfd, tmp_path):
    for out in ("", "\x1b[31m", "a\nb", "\0"):
        fault, line = ended("pretrain", ["--out", out], capfd, tmp_path)
        assert not fault and "out is " in line and "expected the name of a folder" in line
