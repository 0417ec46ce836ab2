"""Countdown: every problem can be solved, and the judge agrees with brute force."""

import ast
from fractions import Fraction

import pytest

from bench.verifier import agreement, every_expression
from springroll.errors import InputError
from springroll.tasks.countdown import closeness, countdown_task, judge, read_expression
from tests.tasks.worked import worked

GIVEN = {"numbers": [3, 7, 25], "target": 46}  # 25+7*3


@pytest.mark.parametrize("numbers", [2, 3, 6])
@pytest.mark.parametrize("operations", ["+-*/", "+-", "/"])
def test_problems_are_solved_by_their_solutions(numbers, operations):
    if operations == "/" and numbers == 6:
        return  # almost no six numbers divide each other
    task = countdown_task(numbers=numbers, largest=40, operations=operations)
    for index in range(40):
        problem = worked(task, index)
        given, target = problem.problem.reference.values()
        found = read_expression(problem.answer)
        assert sorted(found.numbers) == sorted(given) and found.value == target
        assert len(given) == numbers and min(given) >= 1 and max(given) <= 40
        assert 1 <= target <= 400 and not set(problem.answer) & (set("+-*/") - set(operations))
        assert task.score([problem.problem], [problem.answer])[0].reward == 1
        for step in problem.steps:
            left, _, right = step.partition("=")
            assert read_expression(left).value == int(right) >= 1
        assert len(problem.steps) == numbers - 1 and problem.steps[-1].endswith(f"={target}")


def test_solutions_have_no_needless_brackets():
    task = countdown_task(numbers=4, largest=30)
    for index in range(100):
        answer = worked(task, index).answer
        pairs = [i for i, c in enumerate(answer) if c == "("]
        for start in pairs:
            depth, end = 0, start
            for end in range(start, len(answer)):
                depth += (answer[end] == "(") - (answer[end] == ")")
                if depth == 0:
                    break
            bare = answer[:start] + answer[start + 1 : end] + answer[end + 1 :]
            assert ast.dump(ast.parse(bare)) != ast.dump(ast.parse(answer))


@pytest.mark.parametrize("problems", [2_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_the_judge_agrees_with_brute_force(problems):
    checks, wrong, _ = agreement(problems)
    assert wrong == 0 and checks > 3.5 * problems


def test_brute_force_is_right_itself():
    found = list(every_expression([1, 2, 4]))
    assert len(found) == 192
    for text, top, bottom in found[::5]:
        if bottom:
            assert read_expression(text).value == Fraction(top, bottom)


def test_no_problem_is_on_both_sides_whatever_the_order_of_its_numbers():
    tasks = [countdown_task(seed=seed, numbers=2, largest=9) for seed in range(3)]
    kind = lambda problem: (*sorted(problem.reference["numbers"]), problem.reference["target"])
    train = {kind(task.train(i)) for task in tasks for i in range(250)}
    held_out = {kind(task.held_out(i)) for task in tasks for i in range(250)}
    assert len(held_out) > 10 and not train & held_out


@pytest.mark.parametrize(
    ("text", "correct", "formatted"),
    [
        ("25+7*3", True, True),
        ("3 * 7 + 25", True, True),
        ("25+7*3=46", True, True),
        ("25 + 7 × 3", True, True),
        ("[25+(7*3)]", True, True),
        (r"25 + \left(7 \times 3\right)", True, True),
        ("-(0-46)", False, True),
        ("46", False, True),
        ("25+21", False, True),
        ("25+7*3*1", False, True),
        ("25+7*3+3-3", False, True),
        ("46=25+7*3", False, True),
        ("25+7**3", False, False),
        ("the answer is 25+7*3", False, False),
        ("25+7*3\n25+7*3", True, True),
        ("", False, False),
    ],
)
def test_what_solves_a_problem(text, correct, formatted):
    task = countdown_task()
    (verdict,) = task.score([task.train(0)._replace(reference=GIVEN)], [text])
    assert (verdict.correct, verdict.formatted) == (correct, formatted)


def test_closer_expressions_earn_more():
    reward = lambda text: judge(text, GIVEN, "whole", "smooth").reward
    ladder = ["", "99", "25*25", "25", "25+7", "25+7-3", "25+7+3", "25+7*3"]
    rewards = [reward(text) for text in ladder]
    assert rewards == sorted(rewards) and rewards[0] == 0 and rewards[-1] == 1
    assert rewards[1] == pytest.approx(0.1) and rewards[-2] < 0.5
    assert [judge(t, GIVEN, "whole", "exact").reward for t in ladder] == [0] * 7 + [1]
    assert (closeness(Fraction(46), 46), closeness(Fraction(36), 46)) == (1, 0.5)


def test_only_allowed_operations_count():
    assert judge("25+7*3", GIVEN, "whole", "exact", "+*").correct
    assert not judge("25+7*3", GIVEN, "whole", "exact", "+-/").formatted


def test_instructions_say_what_is_judged():
    task = countdown_task(style="instruct", answer="tag", operations="+-")
    problem = worked(task, 3)
    for word in (*map(str, problem.problem.reference["numbers"]), "+ -", "<answer>"):
        assert word in problem.problem.prompt
    text = f"<think>1+1</think>\n<answer>{problem.answer}</answer>"
    assert task.score([problem.problem], [text])[0].correct


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"numbers": 1}, "1 numbers; expected 2 to 6"),
        ({"largest": 1}, "numbers up to 1; expected"),
        ({"operations": "%"}, "operations are '%'; expected some of"),
        ({"style": "loud"}, "expected plain or instruct"),
    ],
)
def test_impossible_countdowns_are_one_line(options, message):
    with pytest.raises(InputError, match=message):
        countdown_task(**options)


def test_options_that_leave_no_problem_are_said():
    with pytest.raises(InputError, match="found no training problem"):
        countdown_task(numbers=2, operations="+", target=1).train(0)
