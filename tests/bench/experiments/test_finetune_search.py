"""The search for options of finetune: arms as they are spelt, and one of a tiny model."""

import argparse

import jax
import pytest

import springroll as sr
from bench import finetune_search
from bench.finetune_search import Arm
from springroll.models.decoder import decoder
from springroll.models.decoder_config import llama
from springroll.tokens.byte_tokenizer import write_byte_tokenizer


def test_an_arm_is_a_name_and_options():
    assert Arm.read("fast: --lr 0.1 --task 'a b'") == Arm("fast", ("--lr", "0.1", "--task", "a b"))
    assert Arm.read("usual:") == Arm("usual", ())
    for wrong in ("usual", ": --lr 1", "a/b: --lr 1", "a\n: --lr 1"):
        with pytest.raises(argparse.ArgumentTypeError):
            Arm.read(wrong)


def test_the_middle_step_is_of_the_rows_that_have_one(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"valid_reward": 1}\n{"step_ratio": 0.5}\n{"step_ratio": 0.1}\n{"step_ratio": 0.2}\n'
    )
    assert finetune_search.median_step(tmp_path) == 0.2


@pytest.mark.slow
def test_arms_are_run_once_and_tabled(tmp_path):
    model, folder = decoder(llama(16, 24, 1, 1, vocab=256, tied=True)), tmp_path / "model"
    sr.save_hf(folder, model, model.init(jax.random.key(0)))
    write_byte_tokenizer(folder)
    tiny = "--generations 1 --eval-problems 4 --prompts 2 --pop-size 4 --max-tokens 2".split()
    base = ("--model", str(folder), "--task", "arithmetic digits=1", *tiny)
    arms = [Arm("usual", ()), Arm("fast", ("--lr", "0.1"))]
    found = finetune_search.search(arms, 1, tmp_path / "runs", base, 60.0)
    assert set(found) == {"usual", "fast"}
    text = (tmp_path / "runs" / "search.md").read_text()
    assert "| usual |  | seed-0 |" in text and "| fast | --lr 0.1 | seed-0 |" in text
    assert finetune_search.search(arms, 1, tmp_path / "runs", base, 60.0) == found
