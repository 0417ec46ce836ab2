"""Expressions: exact values, and everything else refused before it can cost anything."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from springroll.tasks.countdown import MAX_DEPTH, MAX_LENGTH, Refused, read_expression


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("1+2*3", 7),
        (" (1 + 2) * 3 ", 9),
        ("8-3-2", 3),
        ("8/4/2", 1),
        ("1/3+1/6", Fraction(1, 2)),
        ("-3+5", 2),
        ("2*-3", -6),
        ("--4", 4),
        ("999999999999*999999999999", 999999999999**2),
    ],
)
def test_values_are_exact(text, value):
    assert read_expression(text).value == value


def test_the_numbers_are_those_written():
    assert read_expression("-(44-19)*2/44").numbers == (44, 19, 2, 44)


REFUSED = {
    "2**3": "something other",
    "9//2": "something other",
    "+1": "something other",
    "2(3)": "something other",
    "()": "something other",
    "abs(1)": "something other",
    "x": "something other",
    "1.5": "something other",
    "1e3": "something other",
    "1,2": "something other",
    "1;2": "something other",
    "1\n+1": "something other",
    "1\t+1": "something other",
    "\u0661": "something other",
    "1\x00": "something other",
    "": "something other",
    "1+": "no expression",
    "1 2": "no expression",
    "((1)": "no expression",
    "1))": "no expression",
    "007": "no expression",
    "1/0": "division by zero",
    "1/(3-3)": "division by zero",
    "9" * 13: "more than 12 digits",
    "(" * 33 + "1" + ")" * 33: "nested too deeply",
    "-" * 40 + "1": "nested too deeply",
    "1" + "+1" * 60: "nested too deeply",
    "1" + "+1" * 200: "longer than 256",
    "(" * 10**6: "longer than 256",
}


@pytest.mark.parametrize(("text", "why"), REFUSED.items(), ids=range(len(REFUSED)))
def test_everything_else_is_refused(text, why):
    with pytest.raises(Refused, match=why):
        read_expression(text)


def test_the_limits_themselves_are_allowed():
    deep = MAX_DEPTH
    assert read_expression("(" * deep + "1" + ")" * deep).value == 1
    assert read_expression("1".rjust(MAX_LENGTH)).value == 1
    assert read_expression("1" + "+1" * (MAX_DEPTH - 1)).value == MAX_DEPTH


def trees():
    number = st.integers(0, 999).map(lambda n: (str(n), Fraction(n)))

    def join(parts):
        (a, x), sign, (b, y) = parts
        text = f"({a} {sign} {b})"
        if x is None or y is None or (sign == "/" and y == 0):
            return text, None
        return text, {"+": x + y, "-": x - y, "*": x * y, "/": x / y if y else None}[sign]

    join_two = lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(join)
    return st.recursive(number, join_two, max_leaves=8)


@given(trees())
@settings(max_examples=200, deadline=None)
def test_values_equal_those_the_text_was_made_with(made):
    text, value = made
    if value is None or len(text) > MAX_LENGTH:
        with pytest.raises(Refused):
            read_expression(text)
    else:
        assert read_expression(text).value == value


@given(st.text("0123456789+-*/() ", max_size=40) | st.text(max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_or_refused(text):
    try:
        found = read_expression(text)
    except Refused:
        return
    assert isinstance(found.value, Fraction) and found.numbers
