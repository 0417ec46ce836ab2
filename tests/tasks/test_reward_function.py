"""Reward functions of the user's own: found, called, and refused when they are wrong."""

import math
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from springroll.errors import InputError
from springroll.tasks.reward_function import load_function, verdicts, what_raised

HERE = Path(__file__).with_name("reward_functions.py")


@pytest.mark.parametrize("where", ["tests.tasks.reward_functions", str(HERE)])
def test_modules_and_files(where):
    function = load_function(f"{where}:with_records")
    assert function.takes_records and not function.is_async
    assert function(("ab", "c"), [{"worth": 2}, {"worth": 3}]) == [4, 3]
    assert load_function(f"{where}:waits").is_async


def test_one_parameter_is_given_no_records():
    function = load_function("tests.tasks.reward_functions:letters")
    assert not function.takes_records and function(["ab"], [{}]) == [2]


@pytest.mark.parametrize(
    ("source", "takes_records", "is_async"),
    [
        ("def f(texts, records): ...", True, False),
        ("def f(texts, records=None): ...", True, False),
        ("def f(texts, scale=2.0): ...", False, False),
        ("def f(texts, *, scale): ...", False, False),
        ("def f(*both): ...", True, False),
        ("f = len", False, False),
        ("class C:\n    async def __call__(self, texts): ...\nf = C()", False, True),
        ("import functools\nasync def g(a, b): ...\nf = functools.partial(g, b=1)", False, True),
    ],
)
def test_how_a_function_is_called_follows_from_its_parameters(
    tmp_path, source, takes_records, is_async
):
    (tmp_path / "given.py").write_text(source)
    found = load_function(f"{tmp_path}/given.py:f")
    assert (found.takes_records, found.is_async) == (takes_records, is_async)


def test_the_working_folder_is_searched(tmp_path, monkeypatch):
    (tmp_path / "only_here_4711.py").write_text("def f(texts, *more): return [1.0] * len(texts)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert load_function("only_here_4711:f").takes_records


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tests.tasks.reward_functions", "expected module:function or file.py:function"),
        ("tests.tasks.reward_functions:", "expected module:function"),
        (":f", "expected module:function"),
        ("no_such_module_1:f", "no module 'no_such_module_1' for the reward function"),
        ("json.no_such:f", r"no module 'json\.no_such'"),
        (
            "tests.tasks.reward_functions:absent",
            "tests.tasks.reward_functions has no function 'absent'",
        ),
        ("tests.tasks.reward_functions:os", "has no function 'os'"),
        ("tests.tasks.reward_functions:nothing_to_call", r"takes no argument; expected \(texts\)"),
        ("./absent.py:f", "no file ./absent.py for the reward function"),
    ],
)
def test_functions_that_are_not_there(name, message):
    with pytest.raises(InputError, match=message) as error:
        load_function(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_module_2", "cannot import .*: ModuleNotFoundError: No module named"),
        ("1/0", "cannot import .*: ZeroDivisionError: division by zero"),
        ("def f(texts:", "cannot import .*: SyntaxError"),
        ("import sys; sys.exit(1)", "cannot import .*: SystemExit"),
    ],
)
def test_files_that_cannot_be_imported(tmp_path, source, message):
    (tmp_path / "broken.py").write_text(source)
    with pytest.raises(InputError, match=message):
        load_function(f"{tmp_path}/broken.py:f")


def test_results_of_many_kinds():
    floats = [1, 0.5, np.float32(2), np.array(3.0), jnp.float32(4), True]
    assert [v.reward for v in verdicts(floats, 6, "f")] == [1, 0.5, 2, 3, 4, 1]
    assert [v.correct for v in verdicts(floats, 6, "f")] == [True, False, True, True, True, True]
    assert [v.reward for v in verdicts(np.arange(3), 3, "f")] == [0, 1, 2]
    given = [{"reward": 0.5, "correct": True, "formatted": False}, {"reward": 2}]
    assert verdicts(given, 2, "f") == [(0.5, True, False), (2, True, True)]
    assert verdicts((x for x in [0.0]), 1, "f") == [(0, False, True)]


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([1.0], "returned 1 results for 2 texts; expected one float per text"),
        ([], "returned 0 results"),
        (None, "returned NoneType; expected a list of 2 floats"),
        (1.0, "returned float"),
        ("12", "expected one float per text"),
        ({"a": 1, "b": 2}, "expected one float per text"),
        ([1.0, math.nan], "returned nan for text 1; expected a finite float"),
        ([math.inf, 1.0], "returned inf for text 0"),
        ([1.0, "x"], "returned x for text 1"),
        ([None, 1.0], "returned None for text 0"),
        ([{"score": 1}, 1.0], "returned None for text 0"),
        ([np.ones(2), 1.0], "for text 0; expected a finite float"),
    ],
)
def test_wrong_results_are_one_line(results, message):
    with pytest.raises(InputError, match=message) as error:
        verdicts(results, 2, "mine:f")
    assert "the reward function mine:f" in str(error.value) and "\n" not in str(error.value)


def test_what_a_function_raises_is_one_line_with_its_place():
    function = load_function("tests.tasks.reward_functions:misbehave")
    with pytest.raises(KeyError) as error:
        function(["raise"], [{}])
    line = what_raised(error.value, function.name)
    assert "misbehave raised KeyError: 'a key" in line and "\n" not in line
    assert line.endswith(")") and "(reward_functions.py:" in line
    assert what_raised(ValueError(), "f") == "the reward function f raised ValueError"
