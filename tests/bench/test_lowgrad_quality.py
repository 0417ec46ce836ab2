"""The quality bench: tuning, going on, the table and the drawing; one real training."""

import json
import math
from types import SimpleNamespace

import pytest

from springroll.bench import lowgrad_quality
from springroll.models.decoder_config import CONFIGS, llama

SMALL = {
    "batch": 2,
    "sequence": 8,
    "refresh_interval": 2,
    "rank": 2,
    "valid_streams": 2,
    "valid_tokens": 8,
}
LINES = {"unigram_bits_per_byte": 4.5, "bigram_bits_per_byte": 3.5}
BEST = {"adamw": 4e-3, "muon": 3e-2}  # of the stand-in


@pytest.fixture
def folder(tmp_path, monkeypatch):
    text = "".join(f"def times_{i}(x):\n    return {i} * x\n\n" for i in range(300))
    (tmp_path / "text.py").write_text(text)
    monkeypatch.setitem(CONFIGS, "tiny", llama(8, 16, 1, 1, vocab=256, init_std=0.1))
    monkeypatch.setattr(lowgrad_quality, "GRID", {"adamw": [1e-3, 1e-2], "muon": [1e-2]})
    monkeypatch.setitem(lowgrad_quality.METHODS, "muon", {"optimizer": "muon"})
    monkeypatch.setattr(lowgrad_quality, "SEEDS", (0, 1))
    monkeypatch.setattr(lowgrad_quality, "OURS", "muon")
    return tmp_path


@pytest.fixture
def trained(monkeypatch):
    """A loss that is lowest at a known learning rate, in place of training; the runs so far."""
    runs = []

    def curve(config, at):
        runs.append((config.optimizer, config.lr, config.seed))
        loss = 3 + abs(math.log(config.lr / BEST[config.optimizer])) + config.seed / 100
        return [8.0] * (len(at) - 1) + [loss]

    build = lambda config: SimpleNamespace(task=config, lines=LINES)
    monkeypatch.setattr(lowgrad_quality, "build", build)
    monkeypatch.setattr(lowgrad_quality, "curve", curve)
    return runs


def is_tuned(folder, result):
    runs = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    for method, best in result["learning_rate"].items():
        tried = sorted({r["lr"] for r in runs if r["method"] == method and r["seed"] == 0})
        assert tried[0] < best < tried[-1]
        values = {r["lr"]: r["curve"][-1] for r in runs if (r["method"], r["seed"]) == (method, 0)}
        assert min(values, key=values.__getitem__) == best
    return runs


def test_rates_are_tuned_inside_their_grid_and_runs_are_kept(folder, trained):
    result = lowgrad_quality.run(folder, "tiny", 4, **SMALL)
    assert set(result["final"]) == {"adamw", "muon"}
    runs = is_tuned(folder, result)
    assert len(runs) == len(trained) == len(set(trained))
    assert result["learning_rate"] == {"adamw": 1e-2, "muon": 4e-2}  # the nearest that was tried
    assert result["gap"]["adamw"] == 0
    again = lowgrad_quality.run(folder, "tiny", 4, **SMALL)
    assert again["final"] == result["final"]
    assert len(trained) == len(runs) == len((folder / "runs.jsonl").read_text().splitlines())
    page = lowgrad_quality.summary(result)
    assert "| adamw |" in page and "| +0.0 % |" in page and "| bigram |" in page


def test_a_curve_is_of_real_training(folder):
    """From the validation before the first step to that after the last, and going down."""
    options = SMALL | {"data": str(folder / "text.py")}
    bench = lowgrad_quality.Bench(folder / "runs.jsonl", 4, **options)
    bench.final("tiny", "adamw", 1e-1, 0)
    (curve,) = bench.runs.values()
    assert len(curve) == len(bench.at) == 5 and curve[-1] < curve[0]


def test_curves_are_tabled_and_drawn(tmp_path):
    text = lowgrad_quality.table({"adamw": [3.0, 4.0], "muon": [2.0, 3.0]}, lines=LINES)
    assert text.splitlines()[0] == "|  | seed 0 | seed 1 | mean |"
    assert "| muon | 2.000 | 3.000 | 2.500 |" in text and "| bigram |  |  | 3.500 |" in text
    curves = {"adamw": [[8.0, 3.0], [8.0, 4.0]]}
    path = tmp_path / "curves.png"
    lowgrad_quality.draw(path, curves, [0, 64], LINES, title="adamw", top=9.0)
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow  # trains some twenty models
def test_real_runs_are_tuned(folder):
    options = SMALL | {"data": str(folder / "text.py")}
    is_tuned(folder, lowgrad_quality.run(folder, "tiny", 4, **options))
