"""Countdown: make the target from the given numbers with + - * /, each number used exactly once.

Problems are built from a solution, so that every one has one. Plain prompts are as short as
`3,7,25>46:`; the instruct style asks in sentences.

Answers are arithmetic in a text, read exactly and without running anything. A text from a model is
data. Length, characters, nesting and digits are limited before it is parsed; the syntax tree may
hold whole numbers, the four operations and the unary minus and nothing else; values are exact
fractions. Neither `eval` nor sympy sees the text.
"""

import ast
import operator
import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

from springroll.errors import InputError
from springroll.tasks.answers import find_answer, instruction
from springroll.tasks.draws import Draws, draw
from springroll.tasks.problem import Problem, TextTask, Worked, answer_style, generated_task
from springroll.tasks.verdicts import Verdict, verdict
from springroll.typed_call import typed_call

MAX_LENGTH = 256  # characters
MAX_DEPTH = 32  # of parentheses, and of the syntax tree
MAX_DIGITS = 12  # of a number in the text

_ALLOWED = re.compile(r"[0-9+\-*/() ]+")
_TOO_LONG_NUMBER = re.compile(rf"[0-9]{{{MAX_DIGITS + 1},}}")
_OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class Refused(ValueError):
    """The text is no arithmetic that can be read; the message says why."""


class Expression(NamedTuple):
    """What a text amounts to."""

    value: Fraction
    numbers: tuple[int, ...]  # those written in it, from left to right


def read_expression(text: str) -> Expression:
    """The value of an expression and the numbers in it.

    >>> read_expression("(44 - 19) * 2 / 5")
    Expression(value=Fraction(10, 1), numbers=(44, 19, 2, 5))

    Raises:
        Refused: it is too long, holds anything but whole numbers, + - * / and parentheses, is
            nested too deeply, is no expression, or divides by zero.
    """
    if len(text) > MAX_LENGTH:
        raise Refused(f"longer than {MAX_LENGTH} characters")
    text = text.strip()
    if not _ALLOWED.fullmatch(text):
        raise Refused("something other than whole numbers, + - * / and parentheses")
    if _TOO_LONG_NUMBER.search(text):
        raise Refused(f"a number of more than {MAX_DIGITS} digits")
    if _nesting(text) > MAX_DEPTH:
        raise Refused("nested too deeply")
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, MemoryError, RecursionError):
        raise Refused("no expression") from None
    numbers: list[int] = []
    return Expression(_value(tree.body, numbers, MAX_DEPTH), tuple(numbers))


def _nesting(text: str) -> int:
    """The most parentheses open at once; the parser must not meet thousands."""
    depth = deepest = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        deepest = max(deepest, depth)
    return deepest


def _value(node: ast.expr, numbers: list[int], depth: int) -> Fraction:
    if depth == 0:
        raise Refused("nested too deeply")
    match node:
        case ast.Constant(value=int(number)):
            numbers.append(number)
            return Fraction(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, numbers, depth - 1)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
            first = _value(left, numbers, depth - 1)
            second = _value(right, numbers, depth - 1)
            if second == 0 and isinstance(op, ast.Div):
                raise Refused("division by zero")
            return _OPERATIONS[type(op)](first, second)
    raise Refused("something other than + - * / of whole numbers")


OPERATIONS = "+-*/"
NEAR = 10  # how far from the target an expression still earns half of its closeness


@typed_call
def countdown_task(
    *,
    seed: int = 0,
    numbers: int = 3,
    largest: int = 99,
    target: int | None = None,
    operations: str = OPERATIONS,
    style: str = "plain",
    answer: str | None = None,
    reward: str = "smooth",
) -> TextTask:
    """Numbers and a target that can be made from them.

    The smooth reward is 0.1 for an expression, up to 0.4 for legal numbers and a value close to the
    target (`closeness`), and 0.5 for a solution.

    Args:
        numbers: how many there are, 2 to 6.
        largest: of the numbers; 1 is the smallest.
        target: the largest; by default ten times the largest number.
        operations: those that solutions are built with and answers may use, of "+-*/".
        style: "plain" (`3,7,25>46:`) or "instruct".
        answer: where the answer stands (see `answers.py`); by default "whole" for plain prompts and
            "hash" for instructions.
        reward: "smooth" or "exact".

    Raises:
        InputError: an option that is none of these.
    """
    answer = answer_style(style, answer, reward)
    if not 2 <= numbers <= 6:
        raise InputError(f"countdown with {numbers} numbers; expected 2 to 6")
    if not 2 <= largest <= 10**6:
        raise InputError(f"countdown with numbers up to {largest}; expected 2 to 1000000")
    if not operations or not set(operations) <= set(OPERATIONS):
        raise InputError(f"the operations are {operations!r}; expected some of {OPERATIONS}")
    target = 10 * largest if target is None else target
    problems = {
        "numbers": numbers,
        "largest": largest,
        "target": target,
        "operations": operations,
        "style": style,
        "answer": answer,
    }
    return generated_task(
        "countdown",
        lambda held_out, index: countdown_problem(seed, held_out, index, **problems),
        lambda text, reference: judge(text, reference, answer, reward, operations),
        {"seed": seed, **problems, "reward": reward},
        # Digits, operations and parentheses, each a token; some attempts before that.
        {"plain": 12 + numbers * (len(str(largest)) + 3), "instruct": 256},
    )


def countdown_problem(
    seed: int,
    held_out: bool,
    index: int,
    *,
    numbers: int,
    largest: int,
    target: int,
    operations: str,
    style: str,
    answer: str,
) -> Worked:
    """The problem of an index, with a solution. The order of the numbers does not count as another
    problem."""

    def make(draws: Draws) -> tuple[str, Worked] | None:
        given = [1 + draws.below(largest) for _ in range(numbers)]
        solution = _combined(given, operations, draws)
        if solution is None or not 1 <= solution[0].value <= target:
            return None
        result, steps = solution
        prompt = ",".join(map(str, given)) + f">{result.value}:"
        if style == "instruct":
            prompt = (
                f"Using each of the numbers {', '.join(map(str, given))} exactly once and the "
                f"operations {' '.join(operations)}, write an expression that equals "
                f"{result.value}. " + instruction(answer, "expression")
            )
        problem = Problem(prompt, {"numbers": given, "target": result.value})
        key = f"countdown {sorted(given)} {result.value}"
        return key, Worked(problem, result.text, tuple(steps))

    return draw(make, seed, held_out, index)


def judge(
    text: str, reference: dict, answer: str, reward: str, operations: str = OPERATIONS
) -> Verdict:
    """The verdict on one text: is there an expression of the given numbers with the right value?

    Of an equation (`44 - 19 = 25`) the left side counts.
    """
    answered = find_answer(text, answer)
    try:
        value, used = read_expression(_as_typed((answered or "").partition("=")[0], operations))
    except Refused:
        return verdict(reward, formatted=False, partial=0.0, correct=False)
    given, target = reference["numbers"], reference["target"]
    legal = (Counter(used) & Counter(given)).total() / max(len(used), len(given))
    correct = legal == 1 and value == target
    return verdict(
        reward, formatted=True, partial=legal * (1 + closeness(value, target)) / 2, correct=correct
    )


def closeness(value: Fraction, target: int) -> float:
    """1 / (1 + |value - target| / 10): 1 on the target, a half at ten away."""
    return float(1 / (1 + abs(value - target) / NEAR))


class _Term(NamedTuple):
    value: int
    text: str
    binding: int  # of its last operation: 1 for + -, 2 for * /, 3 for a number


def _combined(given: list[int], operations: str, draws: Draws) -> tuple[_Term, list[str]] | None:
    """Take two at random and join them by an operation until one is left; (it, the steps).

    Values on the way are whole and 1 or more. None where no operation allows that.
    """
    left = [_Term(number, str(number), 3) for number in given]
    steps = []
    while len(left) > 1:
        first = left.pop(draws.below(len(left)))
        second = left.pop(draws.below(len(left)))
        possible = [sign for sign in operations if _result(first.value, sign, second.value)]
        if not possible:
            return None
        joined = _joined(first, possible[draws.below(len(possible))], second)
        steps.append(f"{first.value}{joined[1]}{second.value}={joined[0].value}")
        left.append(joined[0])
    return left[0], steps


def _result(first: int, sign: str, second: int) -> int:
    """The value, or 0 where it is not whole or not positive."""
    if sign == "/":
        return first // second if first % second == 0 else 0
    return max(0, {"+": first + second, "-": first - second, "*": first * second}[sign])


def _joined(first: _Term, sign: str, second: _Term) -> tuple[_Term, str]:
    binding = 1 if sign in "+-" else 2
    left = f"({first.text})" if first.binding < binding else first.text
    tight = second.binding < binding or (second.binding == binding and sign in "-/")
    right = f"({second.text})" if tight else second.text
    result = _Term(_result(first.value, sign, second.value), f"{left}{sign}{right}", binding)
    return result, sign


_TYPED = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "[": "(", "]": ")"})
_LATEX = {"\\times": "*", "\\cdot": "*", "\\div": "/", "\\left": "", "\\right": ""}


def _as_typed(text: str, operations: str) -> str:
    """Signs as a keyboard has them; empty where an operation is used that is not allowed."""
    text = text.translate(_TYPED)
    for command, sign in _LATEX.items():
        text = text.replace(command, sign)
    return "" if any(sign in text for sign in OPERATIONS if sign not in operations) else text
