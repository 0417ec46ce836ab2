"""The quality bench on a model of a few numbers: tuning, going on, the table and the drawing."""

import json

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


def test_rates_are_tuned_inside_their_grid_and_runs_are_kept(folder, capsys):
    options = SMALL | {"data": str(folder / "text.py")}
    result = lowgrad_quality.run(folder, "tiny", 4, **options)
    assert set(result["final"]) == {"adamw", "muon"}
    runs = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    for method, best in result["learning_rate"].items():
        tried = sorted({r["lr"] for r in runs if r["method"] == method and r["seed"] == 0})
        assert tried[0] < best < tried[-1]
        values = {r["lr"]: r["curve"][-1] for r in runs if (r["method"], r["seed"]) == (method, 0)}
        assert min(values, key=values.__getitem__) == best
    assert result["gap"]["adamw"] == 0
    again = lowgrad_quality.run(folder, "tiny", 4, **options)
    assert again["final"] == result["final"]
    assert len((folder / "runs.jsonl").read_text().splitlines()) == len(runs)
    page = lowgrad_quality.summary(result)
    assert "| adamw |" in page and "| +0.0 % |" in page and "| bigram |" in page
