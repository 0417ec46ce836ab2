"""Old spellings: they work, warn once a call, and name the line that used them."""

import copy
import inspect
import pickle
import warnings
from typing import Any

import pytest

from springroll.deprecation import renamed_keywords, warn_renamed


@renamed_keywords(gap="interval", size="rank")
def function(rank, *, interval=1):
    """A docstring."""
    return rank, interval


call: Any = function
"""The same to the type checker, which knows no old keyword."""


def test_an_old_keyword_works_with_a_warning_of_one_line_at_the_caller():
    with pytest.warns(DeprecationWarning) as caught:
        assert call(3, gap=5) == (3, 5)
    (warning,) = caught
    assert "the keyword 'gap' of function is now 'interval'" in str(warning.message)
    assert "\n" not in str(warning.message)
    assert warning.filename == __file__


def test_every_old_keyword_of_a_call_warns():
    with pytest.warns(DeprecationWarning) as caught:
        assert call(size=3, gap=5) == (3, 5)
    assert len(caught) == 2


def test_new_keywords_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert function(3, interval=5) == (3, 5)


def test_both_spellings_together_are_refused():
    with pytest.raises(TypeError, match="'gap' and 'interval'"):
        call(3, gap=5, interval=6)
    with pytest.raises(TypeError, match="'rank'"), pytest.warns(DeprecationWarning):
        call(3, size=4)


def test_the_function_stays_what_it_was():
    assert str(inspect.signature(function)) == "(rank, *, interval=1)"
    assert function.__doc__ == "A docstring."
    assert pickle.loads(pickle.dumps(function)) is function
    assert copy.deepcopy(function) is function


def test_a_warning_can_name_any_spelling():
    with pytest.warns(DeprecationWarning, match="--period is now --update-interval") as caught:
        warn_renamed("--period", "--update-interval", stacklevel=1)
    assert caught[0].filename == __file__
