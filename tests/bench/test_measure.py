"""Benchmarks measure what they say: in turn, by medians, with their circumstances."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from springroll.bench import control, measure, openes_ratio


def test_variants_run_in_turn_after_the_warmup():
    calls = []
    variants = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    seconds = measure.interleaved(variants, repeats=3, warmup=1)
    assert calls == ["a", "b"] * 4
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


def test_times_are_those_of_the_call_and_not_of_the_pause(monkeypatch):
    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

        def sleep(self, seconds):
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(measure, "time", clock)
    variants = {"long": lambda: clock.sleep(5.0), "short": lambda: clock.sleep(1.0)}
    seconds = measure.interleaved(variants, repeats=2, settle_seconds=100.0)
    assert seconds == {"long": [5.0, 5.0], "short": [1.0, 1.0]}


def test_medians():
    assert measure.medians({"a": [3.0, 1.0, 100.0]}) == {"a": 3.0}


def test_temporary_bytes_come_from_the_compiler():
    two_steps = jax.jit(lambda x: jnp.sort(jnp.sort(x, axis=0) @ x, axis=1))
    assert measure.temp_bytes(two_steps, jnp.ones((64, 64))) >= 64 * 64 * 4


def test_a_record_says_where_and_when(capsys):
    result = measure.record("claim", ours=1.23456789, baseline=2.0, ratio=1.62, unit="s", size=7)
    measure.report(result)
    line = json.loads(capsys.readouterr().out)
    assert line == result
    assert line["ours"] == 1.235 and line["size"] == 7
    assert set(line["machine"]) == {"processor", "cores", "python", "jax", "device"}
    assert line["machine"]["cores"] >= 1 and len(line["date"]) == 10


def test_a_checkout_names_its_commit_and_anything_else_does_not(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert measure.commit() is None


def test_pinning_leaves_one_core():
    program = "from springroll.bench import measure; import os\ncore = measure.pin_one_core()\n"
    program += "print(os.sched_getaffinity(0) == {core}, os.environ['XLA_FLAGS'])"
    environment = {**os.environ, "XLA_FLAGS": "--xla_cpu_enable_fast_math=false"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    flags = "--xla_cpu_enable_fast_math=false --xla_cpu_multi_thread_eigen=false"
    assert done.stdout.split(maxsplit=1) == ["True", flags + "\n"]


@pytest.mark.slow
def test_a_step_of_both_strategies_is_timed():
    result = openes_ratio.run(pop_size=8, repeats=1)
    assert result["name"] == "openes_ratio" and result["ratio"] > 0
    assert result["ratio"] == pytest.approx(result["baseline"] / result["ours"], rel=1e-2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seconds", "nan"], "argument --seconds: --seconds is nan; it must be a number of sec"),
        (["--seconds", "1e999"], "argument --seconds: --seconds is inf; it must be a number of"),
        (["--seconds", "\x1b[31m"], "expected a number"),
        (["--seeds", "0"], "argument --seeds: --seeds is 0; it must be at least 1"),
        (["--seeds", "1.5"], "argument --seeds: --seeds is '1.5'; expected a whole number"),
        (["--sedes", "1"], "unrecognized arguments: --sedes 1"),
    ],
)
def test_the_arguments_of_a_benchmark_are_checked_in_one_line(capsys, monkeypatch, arguments, said):
    monkeypatch.setattr("sys.argv", ["control", *arguments])
    with pytest.raises(SystemExit) as end:
        control.main()
    error = capsys.readouterr().err
    assert end.value.code == 2 and said in error and error.count("\n") == 1
    assert error.startswith("springroll: ") and error[:-1].isprintable()


def test_a_comparison_without_a_run_is_one_line(capsys, monkeypatch, tmp_path):
    def fails(*arguments):
        raise subprocess.CalledProcessError(2, "rl")

    monkeypatch.setattr(control, "command", fails)
    monkeypatch.setattr("sys.argv", ["control", "--tasks", "X", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        control.main()
    assert capsys.readouterr().err.splitlines()[-1].startswith("springroll: no run of X ended well")
