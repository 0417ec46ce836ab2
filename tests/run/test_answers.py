"""What a model wrote: which answers are kept, and the file that holds them."""

import json
import math
from datetime import date

from springroll.run.answers import LONGEST, Answer, Answers, answer_lines, answer_row, spread
from springroll.run.best import fixed
from springroll.run.clocks import Clock


def rows(text="3", reward=1.0):
    return [answer_row("best", Answer("1+2=", text, reward, True, False, {"answer": "3"}))]


def answers(path, said=None, every=math.inf):
    say = (lambda text: None) if said is None else said.append
    return Answers(path, lambda generation: fixed(generation, 10), say, Clock(lambda: 0.0, every))


def generations(path):
    return [json.loads(line)["generation"] for line in path.read_text().splitlines()]


def test_answers_are_spread_from_the_best_to_the_worst():
    assert spread([0.5], 3) == {0: "best"}
    assert spread([0.0, 1.0], 3) == {1: "best", 0: "worst"}
    assert spread([1.0] * 5, 3) == {0: "best", 2: "median", 4: "worst"}
    assert spread([math.nan, 0.0, -1.0], 3) == {1: "best", 2: "median", 0: "worst"}
    places = spread(list(range(8)), 4)
    assert places == {7: "best", 5: "3 of 8", 2: "6 of 8", 0: "worst"}
    assert list(spread(list(range(8)), 100)) == [7, 6, 5, 4, 3, 2, 1, 0]


def test_the_file_keeps_fixed_generations_and_the_newest(tmp_path):
    path = tmp_path / "answers.jsonl"
    kept = answers(path)
    for generation in range(0, 26):
        kept.keep(generation, rows(), "title")
    assert generations(path) == [0, 10, 20, 25]


def test_it_ends_equal_after_a_kill_anywhere(tmp_path):
    """Also where the metrics of a generation were not written, or the run goes back."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for generation in (0, 3, 10, 12):
        answers(whole).keep(generation, rows(str(generation)), "")
    for before in (0, 7, 10):
        kept = answers(parts)
        kept.keep(before, rows(str(before)), "")
        with open(parts, "ab") as file:
            file.write(b'{"generation": 99, "pl')  # torn: the file is replaced whole, but who knows
        kept = answers(parts)
        kept.begin(before - 1 if before == 7 else before)
    for generation in (10, 12):
        kept.keep(generation, rows(str(generation)), "")
    assert parts.read_bytes() == whole.read_bytes()


def test_without_answers_there_is_no_file(tmp_path):
    kept = answers(tmp_path / "answers.jsonl")
    kept.begin(0)
    kept.keep(0, [], "")
    kept.show()
    assert not list(tmp_path.iterdir())


def test_they_are_shown_at_first_at_the_end_and_now_and_then(tmp_path):
    said = []
    kept = answers(tmp_path / "answers.jsonl", said)
    for generation in range(3):
        kept.keep(generation, rows(), f"generation {generation}:")
    assert said == ["generation 0:\n  best  1  right  '1+2=' -> '3'"]
    kept.show()
    kept.show()
    assert len(said) == 2 and said[1].startswith("generation 2:")


def test_texts_are_cut_and_safe(tmp_path):
    text = "\x1b[31m\u202e\ud800 \x9b" + "x" * 10_000
    [row] = rows(text, math.nan)
    assert row["answer"].endswith(f"... (cut after {LONGEST:,} of 10,009 characters)")
    assert row["reward"] is None
    answers(tmp_path / "a").keep(0, [row], "")
    assert (tmp_path / "a").read_bytes().isascii()
    [line] = answer_lines([row])
    assert line.isprintable() and len(line) < 120 and "not scored" in line
    reference = answer_row("best", Answer("p", "a", 1.0, True, True, {"x": "y" * 5000}))
    assert reference["reference"].startswith('{"x": "yyy') and len(reference["reference"]) < 1100
    odd = Answer("p", "a", 1.0, True, True, {"x": math.nan, "at": date(2026, 1, 2)})
    assert answer_row("best", odd)["reference"] == {"x": None, "at": "2026-01-02"}
    assert rows()[0]["reference"] == {"answer": "3"}
