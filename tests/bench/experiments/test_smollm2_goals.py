"""The bench of a chat model that learns from a reward, with a tiny model in its place."""

import argparse
import json

import jax
import pytest

import springroll as sr
from bench import held_out, short_answers, smollm2_goals
from bench.smollm2_goals import Cell
from springroll.models.decoder import decoder
from springroll.models.decoder_config import llama
from springroll.tokens.byte_tokenizer import write_byte_tokenizer

TINY = "--generations 1 --eval-problems 4 --prompts 2 --pop-size 4 --max-tokens 4".split()


def test_a_short_right_answer_earns_most():
    texts = ["Paris", "paris.", "The capital of France is Paris.", "Rome", ""]
    found = short_answers.short(texts, ["Paris"] * len(texts))
    assert [each["reward"] for each in found] == [1.0, 1.0, pytest.approx(4 / 9), 0.0, 0.0]
    assert [each["formatted"] for each in found] == [True, True, False, False, False]


def test_no_held_out_fact_is_trained_on(tmp_path):
    sides = [path.read_text().splitlines() for path in short_answers.write(tmp_path)]
    prompts, kept = ([json.loads(row)["prompt"] for row in side] for side in sides)
    assert len(prompts) > 150 and len(kept) > 80
    assert len({*prompts, *kept}) == len(prompts) + len(kept)
    about = lambda prompt: prompt.rstrip("?.").split()[-1]
    capitals = lambda some: {about(prompt) for prompt in some if "capital" in prompt}
    assert capitals(prompts) and not capitals(prompts) & capitals(kept)


def test_a_gain_has_the_error_of_its_pairs():
    found = {"before": {"rewards": [0.0, 0.5, 0.0]}, "after": {"rewards": [1.0, 0.5, 0.5]}}
    assert held_out.gain(found) == (0.5, pytest.approx(0.5 / 3**0.5))


def test_cells_are_asked_for_by_name(tmp_path):
    assert Cell.named("sums/es/2") == Cell("sums", "es", 2)
    assert str(Cell("sums", "es", 2)) == "sums/es/2"
    for wrong in ("sums", "sums/es", "sums/other/0", "other/es/0", "sums/es/one"):
        with pytest.raises(argparse.ArgumentTypeError):
            Cell.named(wrong)
    assert len(smollm2_goals.missing(tmp_path, smollm2_goals.cells())) == 12


@pytest.mark.slow
def test_one_cell_at_a_time_is_run_judged_and_kept(tmp_path):
    model, folder = decoder(llama(16, 24, 1, 1, vocab=256, tied=True)), tmp_path / "model"
    sr.save_hf(folder, model, model.init(jax.random.key(0)))
    write_byte_tokenizer(folder)
    root, wanted = tmp_path / "runs", smollm2_goals.cells((0,))
    for cell in (Cell("short", "es", 0), Cell("sums", "grpo", 0)):
        smollm2_goals.run_cell(cell, root, str(folder), 60.0, TINY)
    assert len(smollm2_goals.missing(root, wanted)) == 2
    found = smollm2_goals.report(root, wanted)
    assert found["runs"] == 2 and found["missing"] == 2
    text = (root / "smollm2_goals.md").read_text()
    assert "| short | 0 | evolution (springroll) |" in text and "| sums | 0 | GRPO |" in text
    assert (root / "smollm2_goals.png").stat().st_size > 10_000
    kept = (root / "short" / "es-0" / "metrics.jsonl").stat().st_mtime_ns
    smollm2_goals.run_cell(Cell("short", "es", 0), root, str(folder), 60.0, TINY)
    assert (root / "short" / "es-0" / "metrics.jsonl").stat().st_mtime_ns == kept
