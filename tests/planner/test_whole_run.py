"""What a whole training takes, as it is asked for and shown."""

import pytest

from springroll.errors import InputError
from springroll.planner.plan_result import spelt_tokens
from springroll.planner.whole_run import tokens_of, whole_run


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("10B", 10**10), ("1.5t", 15 * 10**11), ("300M", 3 * 10**8), ("1,000", 1000), (" 7 ", 7)],
)
def test_tokens_as_people_write_them(text, tokens):
    assert tokens_of(text) == tokens


@pytest.mark.parametrize(
    "text", ["", "0", "10Q", "-1B", "1e9", "nan", "B", "1" * 5000, "99999999T", "0.0001", "\n"]
)
def test_what_is_no_number_of_tokens_is_one_line(text):
    with pytest.raises(InputError, match="total-tokens is") as refused:
        tokens_of(text)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 200


def test_steps_are_whole_and_cost_their_time():
    found = whole_run(100, 32, step=3600.0, price=2.0)
    assert found == (100, 4, 4 / 24, 8.0)
    assert whole_run(100, 32, step=3600.0).price is None
    assert whole_run(100, 32, step=1.0, price=0).price == 0
    for price in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="price is"):
            whole_run(100, 32, step=1.0, price=price)


def test_tokens_are_shown_in_the_unit_they_are_given_in():
    shown = [spelt_tokens(n) for n in (1234, 3 * 10**8, 15 * 10**8, 10**13)]
    assert shown == ["1,234", "300M", "1.5B", "10T"]
