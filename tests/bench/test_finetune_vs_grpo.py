"""The comparison with GRPO at the smallest size: real commands, a table and a picture."""

import pytest

from springroll.bench import finetune_vs_grpo

SMALL = ("--generations", "1", "--eval-problems", "4", "--prompts", "2", "--pop-size", "4")


def rows(*accuracies):
    names = ("format_rate", "truncation_rate", "mean_length")
    rest = {f"valid_{name}": 1.0 for name in names}
    return [{"seconds": 9.0 * i, "valid_accuracy": a, **rest} for i, a in enumerate(accuracies)]


def test_the_table_and_the_picture_hold_every_run(tmp_path):
    runs = {"es": [rows(0.25, 0.5), rows(0.125, 0.75)], "grpo": [rows(0.25, 1.0), rows(0.125, 0.5)]}
    text = finetune_vs_grpo.table(runs, (0, 3))
    assert "| 0 | pretrained | 25.0 % | 100.0 % | 100.0 % | 1.00 |" in text
    assert "| 3 | evolution (springroll) | 75.0 %" in text and "| 3 | GRPO | 50.0 %" in text
    finetune_vs_grpo.draw(runs, tmp_path / "runs.png")
    assert (tmp_path / "runs.png").stat().st_size > 10_000


@pytest.mark.slow
def test_it_runs_both_methods_from_one_model_and_goes_on(tmp_path):
    size = ("--generations", "2", "--batch", "2", "--sequence", "16", "--valid-tokens", "16")
    given = {"seeds": (0,), "pretraining": (*size, "--valid-streams", "2"), "options": SMALL}
    found = finetune_vs_grpo.run(str(tmp_path), 60.0, **given)
    assert set(found) >= {"start", "es", "grpo", "es_least_gain", "grpo_least_gain"}
    text = (tmp_path / "finetune_vs_grpo.md").read_text()
    assert text.count("| 0 | ") == 3 and "GRPO" in text and "truncation rate" in text
    assert (tmp_path / "finetune_vs_grpo.png").stat().st_size > 10_000
    written = (tmp_path / "seed-0" / "es" / "metrics.jsonl").stat().st_mtime_ns
    assert finetune_vs_grpo.run(str(tmp_path), 60.0, **given) == found
    assert (tmp_path / "seed-0" / "es" / "metrics.jsonl").stat().st_mtime_ns == written
