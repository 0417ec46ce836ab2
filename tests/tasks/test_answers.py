"""Where the answer stands, and which number it is."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from springroll.errors import InputError
from springroll.tasks.answers import (
    INSTRUCTIONS,
    MAX_TEXT,
    check_style,
    find_answer,
    find_number,
    instruction,
)


@pytest.mark.parametrize(
    ("text", "style", "answer"),
    [
        (" 46 \n", "whole", "46"),
        ("#### 46", "hash", "46"),
        ("a\n####46 \nb #### 7", "hash", "46"),
        ("46", "hash", None),
        ("#### ", "hash", None),
        ("one\n 1+2 \n\n", "last", "1+2"),
        (r"\boxed{46}", "boxed", "46"),
        (r"first \boxed{1} then \boxed{ 2 } end", "boxed", "2"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", "boxed", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{46", "boxed", None),
        (r"\boxed{}", "boxed", None),
        ("<answer>1</answer> or <answer> 2+3 </answer>", "tag", "2+3"),
        ("<answer>1</answer> or <answer>2", "tag", None),
        ("</answer>1<answer>", "tag", None),
        ("<think>#### 1</think>#### 2", "hash", "2"),
        ("#### 1\n</think>\nno answer", "hash", None),
        ("<think> so #### 1", "hash", None),
        ("", "whole", None),
        ("x" * 2000, "whole", None),
    ],
)
def test_the_answer_is_found(text, style, answer):
    assert find_answer(text, style) == answer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("46", 46),
        ("-46", -46),
        ("+46", 46),
        ("\u221246", -46),
        ("1,234", 1234),
        ("1,234,567.5", Fraction(2469135, 2)),
        ("12,34", 12),  # no thousands
        ("0.25", Fraction(1, 4)),
        (".5", Fraction(1, 2)),
        ("007", 7),
        ("3/4", Fraction(3, 4)),
        ("-3 / 4", Fraction(-3, 4)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"\dfrac{-3}{4}", Fraction(-3, 4)),
        (r"-\frac{3}{4}", Fraction(-3, 4)),
        ("$18", 18),
        ("-$18.50", Fraction(-37, 2)),
        ("$-18", -18),
        (r"\$1,000", 1000),
        ("€ 5", 5),
        ("46 apples", 46),
        ("46%", 46),
        ("46.", 46),
        ("3 days and 4 hours", 3),
        ("12 + 34 = 46", 46),
        ("x = -5", -5),
        ("1/0", None),
        ("none", None),
        ("9" * 65, None),
        ("\u0664\u0666", None),  # 46 in Arabic digits, in wide ones, in Devanagari
        ("\uff14\uff16", None),
        ("\u096a\u096c", None),
        ("4\u0666", None),
        ("\u06646", None),
        ("4.\u0666", None),
        ("\u0664 or 46", 46),
        ("3/\u0664", None),
        ("1e2", 100),
        ("-1.5E3", -1500),
        ("2.5e-1", Fraction(1, 4)),
        ("1e+2 apples", 100),
        ("1e64", 10**64),
        ("1e65", None),
        ("1e" + "9" * 60, None),
        ("1e2e3", None),
        ("1e2x", None),
        ("1e\u0662", None),
        ("3e", 3),  # a unit
        ("3 em", 3),
        ("1,234e1", 12340),
        ("12,34,567", 12),
    ],
)
def test_numbers_are_read_exactly(text, value):
    assert find_number(f"#### {text}", "hash") == value
    assert find_number(f"\\boxed{{{text}}}", "boxed") == value
    assert find_number(f"<answer>{text}</answer>", "tag") == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("She pays 5 - 3 = 2 dollars.", 2),
        ("10-3", 3),  # a minus between two numbers is no sign
        ("it is -3", -3),
        ("from 1,000 to 2,500.", 2500),
        ("so 7 of them.\n\nThat is all.", 7),
        ("no number", None),
        ("9" * MAX_TEXT, None),
        ("8 " * MAX_TEXT + "the answer is 9 ...", 9),
    ],
)
def test_the_last_number(text, value):
    assert find_number(text, "last") == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("46", 46),
        (" 46 ", 46),
        ("1e2", 100),
        ("\u0664\u0666", None),
        ("46.", None),
        ("46 apples", None),
        ("4+2", None),
        ("-6", -6),
    ],
)
def test_a_whole_answer_is_nothing_but_the_number(text, value):
    assert find_number(text, "whole") == value


@given(st.fractions(-(10**9), 10**9, max_denominator=1000), st.sampled_from(list(INSTRUCTIONS)))
@settings(max_examples=150, deadline=None)
def test_a_number_written_in_any_style_is_read_back(value, style):
    wrapped = {"whole": "{}", "hash": "1\n#### {}", "last": "2 so {}.", "boxed": "\\boxed{{{}}}"}
    text = wrapped.get(style, "<answer>{}</answer>").format(value)
    assert find_number(text, style) == value


@given(st.text(max_size=60) | st.text("0123456789-+,.$/#\\boxed{}<answer>/ \n", max_size=60))
@settings(max_examples=200, deadline=None)
def test_no_text_breaks_it(text):
    for style in INSTRUCTIONS:
        found = find_number(text, style)
        assert found is None or isinstance(found, Fraction)


def test_every_style_can_be_asked_for():
    assert all("number" in instruction(style, "number") for style in INSTRUCTIONS)
    assert instruction("boxed", "number") == r"Put the number in \boxed{}."
    with pytest.raises(InputError, match="'loud'; expected one of whole, hash, last, boxed, tag"):
        check_style("loud")
