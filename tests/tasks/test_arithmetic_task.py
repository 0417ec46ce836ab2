"""Sums from a seed and their judge."""

import operator

import pytest

from springroll.errors import InputError
from springroll.tasks.arithmetic import arithmetic_task, digit_accuracy, judge
from springroll.tasks.countdown import read_expression
from springroll.tasks.problem import spoken
from tests.tasks.worked import worked

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


@pytest.mark.parametrize("digits", [1, 3])
def test_problems_are_right_and_within_their_options(digits):
    task = arithmetic_task(digits=digits, operators="+-*")
    seen = set()
    for index in range(300):
        problem = worked(task, index)
        assert problem.problem == task.train(index)
        text = spoken(problem.problem.prompt).removesuffix("=")
        found = read_expression(text)
        assert found.value == int(problem.answer) and max(found.numbers) < 10**digits
        seen.add(next(sign for sign in OPERATORS if sign in text))
        for step in problem.steps:  # each is an equation that holds, and the last gives the answer
            left, _, right = step.rpartition("=")
            assert read_expression(left).value == int(right)
        assert not problem.steps or problem.steps[-1].endswith(f"={problem.answer}")
    assert seen == set(OPERATORS)


def test_a_sum_the_other_way_round_is_on_the_same_side():
    tasks = [arithmetic_task(digits=1, seed=seed) for seed in range(3)]
    kinds = lambda problem: tuple(sorted(problem.prompt.rstrip("=").split("+")))
    train = {kinds(task.train(i)) for task in tasks for i in range(300)}
    held_out = {kinds(task.held_out(i)) for task in tasks for i in range(300)}
    assert held_out and not train & held_out


def test_seeds_give_other_problems():
    prompts = lambda seed: [arithmetic_task(seed=seed, digits=4).train(i) for i in range(20)]
    assert prompts(0) == prompts(0) != prompts(1)


@pytest.mark.parametrize(
    ("found", "expected", "share"),
    [(46, 46, 1), (45, 46, 1 / 2), (64, 46, 0), (146, 46, 2 / 3), (6, 46, 1 / 2), (-46, 46, 1 / 2)],
)
def test_digits_are_compared_from_the_units(found, expected, share):
    assert digit_accuracy(found, expected) == pytest.approx(share)


def test_closer_answers_earn_more_and_only_the_right_one_all():
    reward = lambda text: judge(text, "146", "whole", "smooth").reward
    ladder = ["", "about 146", "999", "996", "946", "147", "146"]
    rewards = [reward(text) for text in ladder]
    assert rewards[:3] == [0, 0, pytest.approx(0.1)] and rewards[-1] == 1
    assert rewards[2] < rewards[3] < rewards[4] == rewards[5] < 0.5
    assert [judge(text, "146", "whole", "exact").reward for text in ladder] == [0] * 6 + [1]


def test_only_the_first_line_of_a_plain_answer_counts():
    task = arithmetic_task()
    problem = task.train(0)
    right = problem.reference["answer"]
    verdicts = task.score([problem] * 3, [f"{right}\n1+1=2", f"\n{right}", f" {right} "])
    assert [v.correct for v in verdicts] == [True, False, True]
    assert task.stop == ("\n",) and not task.chat


@pytest.mark.parametrize("answer", ["hash", "last", "boxed", "tag"])
def test_instructions_ask_for_the_place_that_is_judged(answer):
    task = arithmetic_task(style="instruct", answer=answer, operators="*")
    problem, right = task.held_out(0), task.held_out(0).reference["answer"]
    texts = {"hash": "#### {}", "last": "It is {}.", "boxed": "\\boxed{{{}}}"}
    text = texts.get(answer, "<answer>{}</answer>").format(right)
    assert "What is" in problem.prompt and task.chat and task.stop == ()
    assert task.score([problem], [f"Let me see: 1\n{text}"])[0].correct
    assert not task.score([problem], [text.replace(right, right + "1")])[0].correct


def test_a_batch_must_have_as_many_texts_as_problems():
    task = arithmetic_task()
    with pytest.raises(ValueError, match="shorter"):
        task.score([task.train(0)] * 2, ["1"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"digits": 0}, "0 digits; expected 1 to 9"),
        ({"operators": "/"}, "operators are '/'; expected some of"),
        ({"operators": ""}, "expected some of"),
        ({"style": "loud"}, "'loud'; expected plain or instruct"),
        ({"answer": "loud"}, "'loud'; expected one of whole"),
        ({"reward": "loud"}, "'loud'; expected one of smooth, exact"),
    ],
)
def test_impossible_options_are_one_line(options, message):
    with pytest.raises(InputError, match=message) as error:
        arithmetic_task(**options)
    assert "\n" not in str(error.value)
