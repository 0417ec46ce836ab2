"""The bench that holds plans against steps, at a toy's size."""

import json
import subprocess
from typing import Any

import numpy as np
import pytest

from springroll.bench import plan_accuracy
from springroll.bench.plan_accuracy import CASES, Case, compared, line, peak, planned, seconds
from springroll.models.decoder_config import CONFIGS
from springroll.planner.footprint import device_bytes, host_bytes, total

TOY = Case(config=CONFIGS["llama-tiny"], mode="device", rows=1, sequence=16)


def test_cases_of_every_kind():
    assert len(CASES) == 12
    assert {case.mode for case in CASES.values()} >= {"host", "device", "resident"}
    assert {case.dtype for case in CASES.values()} == {"float32", "bfloat16"}
    assert {bool(case.config.experts) for case in CASES.values()} == {True, False}
    assert len({case.rows * case.parts * case.sequence for case in CASES.values()}) > 2
    assert max(case.sequence for case in CASES.values()) >= 16384
    assert any(case.clip == "global" for case in CASES.values())
    assert any(case.disk for case in CASES.values())
    assert any(case.devices > 1 for case in CASES.values())
    sizes = [case.config.parameters for case in CASES.values()]
    assert min(sizes) > 5e7  # so that arrays outweigh what a process takes anyway


@pytest.mark.slow  # compiles every program of a step twice
def test_a_toy_is_predicted_and_timed(monkeypatch):
    monkeypatch.setattr(plan_accuracy, "STEPS", 1)
    monkeypatch.setattr(plan_accuracy, "WARM", 1)
    spec, place = planned(TOY)
    assert spec.tokens == 16 and place.mode == "device" and place.inputs == 2
    said = plan_accuracy.predicted_bytes(TOY)
    assert said["bytes"] == total(device_bytes(spec, place)) + total(host_bytes(spec, place))
    slow, was = seconds(TOY)
    assert slow > 0 and was > 0


def test_the_peak_is_that_of_the_steps(monkeypatch):
    """A trainer that holds 128 MiB, and takes 64 more in a step."""
    take = lambda mebibytes: np.ones(mebibytes << 20, np.int8)
    monkeypatch.setattr(plan_accuracy, "trainer", lambda case: (take(128), None))
    monkeypatch.setattr(plan_accuracy, "steps", lambda case, made, state, n: take(64).sum())
    assert peak(TOY) == pytest.approx(192 << 20, rel=0.1)


def test_a_case_is_two_fresh_processes(monkeypatch):
    asked: list[Any] = []

    def run(command, env, **options):
        asked.append((command[-2:], env))
        found = {"said": 2.0, "was": 1.0}
        if command[-1] == "bytes":
            found = {"said": {"bytes": 110, "device": {}, "host": {}}, "was": 100}
        return subprocess.CompletedProcess(command, 0, "noise\n" + json.dumps(found) + "\n")

    monkeypatch.setattr(subprocess, "run", run)
    row = compared("float32, host")
    assert [command[1] for command, _ in asked] == ["seconds", "bytes"]
    assert "MALLOC_ARENA_MAX" not in asked[0][1] and asked[1][1]["MALLOC_ARENA_MAX"] == "1"
    assert row["bytes_error"] == pytest.approx(0.1) and row["seconds_error"] == 1
    assert "+10.0%" in line(row) and "+100.0%" in line(row)


def test_two_devices_on_one_processor_are_not_timed(monkeypatch):
    asked: list[Any] = []

    def run(command, env, **options):
        asked.append((command[-1], env["XLA_FLAGS"].split()[-1]))
        found = {"said": {"bytes": 110, "device": {}, "host": {}}, "was": 100}
        return subprocess.CompletedProcess(command, 0, json.dumps(found) + "\n")

    monkeypatch.setattr(subprocess, "run", run)
    row = compared("two devices, host")
    assert asked == [("bytes", "--xla_force_host_platform_device_count=2")]
    assert "seconds" not in row and line(row).endswith("(+10.0%)")


def test_the_worst_case_is_reported(monkeypatch):
    def row(name):
        sign = -1 if name.startswith("experts") else 1
        return {
            "case": name,
            "bytes": [1e9, 1e9],
            "bytes_error": 0.05 * sign,
            "seconds": [1.0, 1.0],
            "seconds_error": 0.1 * sign,
        }

    monkeypatch.setattr(plan_accuracy, "compared", row)
    found = plan_accuracy.run()
    assert found["ours"] == 0.05 and found["seconds_error"] == 0.1
    assert list(found["cases"]) == list(CASES)
