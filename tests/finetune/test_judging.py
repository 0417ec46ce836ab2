"""Answers judged: the same as one by one, with every figure that belongs together."""

import math
from collections import Counter

import numpy as np

from springroll.finetune.judging import best_of, judged
from springroll.generate.generator import Generated
from springroll.tasks.problem import Problem, TextTask
from springroll.tasks.verdicts import Verdict
from springroll.tokens.tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()
PROBLEMS = [Problem("1+1=", "2"), Problem("2+2=", "4")]


def task(calls=None, stop=()):
    def score(problems, texts):
        if calls is not None:
            calls.update(texts)
        return [
            Verdict(math.nan, False, False)
            if text == "?"
            else Verdict(float(len(text)), text == problem.reference, text.isdigit())
            for problem, text in zip(problems, texts, strict=True)
        ]

    nothing = lambda index: PROBLEMS[0]
    return TextTask(name="t", train=nothing, held_out=nothing, score=score, stop=stop)


def generated(*answers, width=6):
    """Answers by member and prompt; one that ends with . was ended by its end token."""
    shape = (len(answers), len(answers[0]))
    tokens, lengths = np.zeros((*shape, width), np.int32), np.zeros(shape, np.int32)
    finished = np.zeros(shape, bool)
    for at in np.ndindex(shape):
        text = answers[at[0]][at[1]]
        found = TOKENIZER.encode(text.removesuffix("."), special=False)
        tokens[at][: len(found)] = found
        lengths[at], finished[at] = len(found), text.endswith(".")
    return Generated(tokens, lengths, finished, np.zeros_like(finished), None, 0, 0, 0)


def test_verdicts_stand_where_their_answers_do():
    found = judged(task(), TOKENIZER, PROBLEMS, generated(["2.", "x."], ["33.", "4."]))
    assert found.correct.tolist() == [[True, False], [False, True]]
    assert found.formatted.tolist() == [[True, False], [True, True]]
    assert found.reward.tolist() == [[1.0, 1.0], [2.0, 1.0]]
    assert not found.truncated.any()


def test_equal_answers_are_judged_once():
    calls = Counter()
    judged(task(calls), TOKENIZER, PROBLEMS, generated(["2.", "4."], ["2.", "4."], ["2.", "2."]))
    assert calls == {"2": 2, "4": 1}  # 2 as an answer to both prompts


def test_what_ends_nowhere_is_truncated_and_a_stop_string_ends_it():
    answers = generated(["2\n3", "444444"])
    plain = judged(task(), TOKENIZER, PROBLEMS, answers)
    assert plain.truncated.tolist() == [[True, True]]
    stopped = judged(task(stop=("\n",)), TOKENIZER, PROBLEMS, answers)
    assert stopped.truncated.tolist() == [[False, True]]
    assert stopped.correct[0, 0]


def test_the_figures_stand_together():
    found = judged(task(), TOKENIZER, PROBLEMS, generated(["2.", "?."], ["33.", "44444"]))
    assert found.figures("valid_") == {
        "valid_accuracy": 0.25,
        "valid_format_rate": 0.75,
        "valid_truncation_rate": 0.25,
        "valid_mean_length": (1 + 1 + 2 + 5) / 4,
        "valid_reward": (1 + 2 + 5) / 3,
        "valid_unscored": 1,
    }


def test_the_best_of_several_answers_counts():
    found = judged(
        task(), TOKENIZER, [PROBLEMS[0]] * 3, generated(["2.", "?.", "333."], ["?.", "?.", "?."])
    )
    best = best_of(found, 3)
    assert best.reward[0].tolist() == [3.0] and np.isnan(best.reward[1, 0])
    assert best.length[0].tolist() == [3] and not best.correct[0, 0]
    assert best_of(found, 1) is found
