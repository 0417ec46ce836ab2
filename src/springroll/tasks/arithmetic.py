"""Arithmetic: two whole numbers and an operation, from a seed.

Plain prompts are as short as `12+34=`; the instruct style asks in a sentence.
"""

from fractions import Fraction
from itertools import zip_longest

from springroll.errors import InputError
from springroll.tasks.answers import find_number, instruction
from springroll.tasks.draws import Draws, draw
from springroll.tasks.problem import Problem, TextTask, Worked, answer_style, generated_task
from springroll.tasks.verdicts import Verdict, verdict
from springroll.typed_call import typed_call

OPERATORS = "+-*"


@typed_call
def arithmetic_task(
    *,
    seed: int = 0,
    digits: int = 2,
    operators: str = "+",
    style: str = "plain",
    answer: str | None = None,
    reward: str = "smooth",
) -> TextTask:
    """Sums of whole numbers, and differences and products if asked for.

    The smooth reward is 0.1 for a number, up to 0.4 for the share of its digits that are right
    (`digit_accuracy`) and 0.5 for the right number.

    Args:
        digits: of the largest number asked about, 10^digits - 1; 0 is the smallest.
        operators: those to draw from, of "+-*".
        style: "plain" (`12+34=`) or "instruct".
        answer: where the answer stands (see `answers.py`); by default "whole" for plain prompts and
            "hash" for instructions.
        reward: "smooth" or "exact".

    Raises:
        InputError: an option that is none of these.
    """
    answer = answer_style(style, answer, reward)
    if not 1 <= digits <= 9:
        raise InputError(f"arithmetic with {digits} digits; expected 1 to 9")
    if not operators or not set(operators) <= set(OPERATORS):
        raise InputError(f"the operators are {operators!r}; expected some of {OPERATORS}")
    problems = {"digits": digits, "operators": operators, "style": style, "answer": answer}
    return generated_task(
        "arithmetic",
        lambda held_out, index: arithmetic_problem(seed, held_out, index, **problems),
        lambda text, reference: judge(text, reference["answer"], answer, reward),
        {"seed": seed, **problems, "reward": reward},
        # The digits of a product, each a token, a sign and an end; a sentence around them.
        {"plain": 12 + 2 * digits, "instruct": 64},
    )


def arithmetic_problem(
    seed: int, held_out: bool, index: int, *, digits: int, operators: str, style: str, answer: str
) -> Worked:
    """The problem of an index, with its solution. Which way round a sum stands does not count
    as another problem."""

    def make(draws: Draws) -> tuple[str, Worked]:
        first, second = draws.below(10**digits), draws.below(10**digits)
        sign = operators[draws.below(len(operators))]
        keyed = sorted([first, second]) if sign in "+*" else [first, second]
        result = str(_result(first, sign, second))
        task = f"{first}{sign}{second}"
        prompt = task + "="
        if style == "instruct":
            prompt = f"What is {first} {sign} {second}? " + instruction(answer, "number")
        problem = Problem(prompt, {"task": task, "answer": result})
        return f"arithmetic {sign} {keyed}", Worked(problem, result, _steps(first, sign, second))

    return draw(make, seed, held_out, index)


def judge(text: str, expected: str, answer: str, reward: str) -> Verdict:
    """The verdict on one text."""
    answered, right = find_number(text, answer), Fraction(expected)
    correct = answered == right
    partial = 0.0
    if answered is not None and answered.denominator == 1:
        partial = digit_accuracy(int(answered), int(right))
    return verdict(reward, formatted=answered is not None, partial=partial, correct=correct)


def digit_accuracy(answered: int, expected: int) -> float:
    """The share of equal digits, units under units, of the longer number; half for a wrong sign.

    >>> digit_accuracy(146, 46), digit_accuracy(-46, 46)
    (0.6666666666666666, 0.5)
    """
    pairs = list(zip_longest(str(abs(answered))[::-1], str(abs(expected))[::-1]))
    same = sum(a == b for a, b in pairs) / len(pairs)
    return same if (answered < 0) == (expected < 0) else same / 2


def _result(first: int, sign: str, second: int) -> int:
    return {"+": first + second, "-": first - second, "*": first * second}[sign]


def _steps(first: int, sign: str, second: int) -> tuple[str, ...]:
    """Place by place, then together: 2+4=6, 10+30=40, 6+40=46."""
    places = range(max(len(str(first)), len(str(second))))
    at = lambda number, place: number // 10**place % 10 * 10**place
    if sign == "*":
        parts = [(first, at(second, place)) for place in places if at(second, place)]
    else:
        parts = [(at(first, place), at(second, place)) for place in places]
    results = [_result(a, sign, b) for a, b in parts]
    steps = [f"{a}{sign}{b}={result}" for (a, b), result in zip(parts, results, strict=True)]
    if len(results) > 1:
        together = "+".join(map(str, results)).replace("+-", "-")
        steps.append(f"{together}={sum(results)}")
    return tuple(steps)
