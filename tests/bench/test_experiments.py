"""The experiments in `bench/`: each is listed, says how it is run, and runs where that is quick.

What each measures is under test in `tests/bench/experiments/`, which `make test-slow` runs.
"""

import importlib
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import bench
from bench import (
    attention_blocks,
    gpu_stream,
    host_adamw,
    link_bandwidth,
    state_quantization,
    subspace_refresh,
    unattended,
    verifier,
)

FOLDER = Path(bench.__file__).parent
ROOT = FOLDER.parent
PARTS = {"__init__", "unattended", "expert_bytes", "expert_subspaces", "held_out"}
PARTS |= {"short_answers"}
NAMES = sorted({path.stem for path in FOLDER.glob("*.py")} - PARTS)


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_says_how_it_is_run(name):
    module = importlib.import_module(f"bench.{name}")
    assert f"\n    python -m bench.{name}" in str(module.__doc__)
    assert callable(module.measurements if name.startswith("gpu_") else module.main)


def test_every_experiment_is_listed():
    listed = re.findall(r"^\| `(\w+)` \|", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == NAMES


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("gpu_")])
@pytest.mark.parametrize("small", [True, False])
def test_a_script_for_a_gpu_has_measurements_of_both_sizes(name, small):
    pairs = importlib.import_module(f"bench.{name}").measurements(small)
    assert len({label for label, _ in pairs}) == len(pairs) > 0
    assert all(callable(call) for _, call in pairs)


def test_a_script_for_a_gpu_measures_and_writes_everything(tmp_path, monkeypatch, capsys):
    """Those that take no compiling; all of every script are run by `make test-slow`."""
    monkeypatch.setattr("sys.argv", ["gpu", "--small", "--out", str(tmp_path)])
    quick = ("link_bandwidth", "host_adamw", "adamw_beside_copies")

    def measurements(small):
        return [pair for pair in gpu_stream.measurements(small) if pair[0] in quick]

    unattended.script("gpu_stream", "summary", measurements)
    (path,) = tmp_path.glob("gpu_stream-*.json")
    results = json.loads(path.read_text())
    assert [result["name"] for result in results] == ["link_bandwidth", "host_adamw", quick[2]]
    assert not [result for result in results if "failed" in result]
    assert len(capsys.readouterr().out.splitlines()) == len(quick) + 1


def test_what_does_not_fit_is_noted_and_the_rest_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["gpu", "--out", str(tmp_path)])

    def full():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nmore")

    done = {"name": "second", "date": "2026-11-29"}
    unattended.script("gpu", "summary", lambda small: [("first", full), ("second", lambda: done)])
    (path,) = tmp_path.glob("gpu-*-2026-11-29.json")
    failed = {"name": "first", "failed": "RESOURCE_EXHAUSTED: out of memory"}
    assert json.loads(path.read_text()) == [failed, done]


DOC = ROOT / "docs" / "expert-granular.md"
QUICK = {
    "attention_blocks": lambda: attention_blocks.run(time=8, dtype="float32", repeats=1),
    "host_adamw": lambda: host_adamw.run(numbers=5000, repeats=1, chunk=700),
    "link_bandwidth": lambda: link_bandwidth.bandwidth((0.01,), repeats=1),
    "state_quantization": lambda: state_quantization.run(rows=8, columns=256, steps=5),
    "subspace_refresh": lambda: subspace_refresh.run((8,), 32, 32, repeats=1)[0],
    "verifier": lambda: verifier.run(problems=10, repeats=1),
}


@pytest.mark.parametrize("name", QUICK)
def test_an_experiment_gives_a_record(name):
    result = QUICK[name]()
    assert result["name"] == name
    assert np.isfinite([result["ours"], result["baseline"], result["ratio"]]).all()
    assert json.loads(json.dumps(result)) == result


def test_the_document_answers_all_nine_and_names_commands():
    text = DOC.read_text()
    for number in range(1, 10):
        assert f"\n## {number}. " in text
    assert "python -m bench.expert_granular" in text
    assert "springroll bench lowgrad_quality" in text
    assert (DOC.parent / "images" / "expert_granular.png").exists()
