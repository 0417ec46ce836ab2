"""Arithmetic in a text, read exactly and without running anything: whole numbers, + - * /, ().

A text from a model is data. Length, characters, nesting and digits are limited before it is parsed;
the syntax tree may hold whole numbers, the four operations and the unary minus and nothing else;
values are exact fractions. Neither `eval` nor sympy sees the text.
"""

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

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
