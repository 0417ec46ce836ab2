"""Reward functions of the user's own: found, called, and refused when they are wrong."""

import asyncio
import json
import math
import sys
from fractions import Fraction
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from springroll.errors import InputError, one_line
from springroll.tasks.failures import KINDS, Unusable
from springroll.tasks.reward_function import Failed, failure_of, load_function, outcomes_of
from springroll.tasks.reward_signature import SIGNATURES
from springroll.tasks.verdicts import Verdict

HERE = Path(__file__).with_name("reward_functions.py")


@pytest.mark.parametrize("where", ["tests.tasks.reward_functions", str(HERE)])
def test_modules_and_files(where):
    function = load_function(f"{where}:with_records")
    assert not function.is_async
    assert function(("ab", "c"), [{"worth": 2}, {"worth": 3}]) == [4, 3]
    assert load_function(f"{where}:waits").is_async


def test_one_parameter_is_given_no_records():
    assert load_function("tests.tasks.reward_functions:letters")(["ab"], [{}]) == [2]


TEXTS = ["a", "bc"]
RECORDS = [{"prompt": "1+2", "answer": 3}, {"prompt": "4+5", "answer": 9, "id": 7}]
PROMPTS, ANSWERS, IDS = ["1+2", "4+5"], [3, 9], [None, 7]


@pytest.mark.parametrize(
    ("parameters", "given"),
    [
        ("texts", {"texts": TEXTS}),
        ("x", {"x": TEXTS}),
        ("completions", {"completions": TEXTS}),
        ("x, scale=2.0", {"x": TEXTS, "scale": 2.0}),
        ("texts, records", {"texts": TEXTS, "records": RECORDS}),
        ("texts, records=None", {"texts": TEXTS, "records": RECORDS}),
        ("x, *, records", {"x": TEXTS, "records": RECORDS}),
        ("x, scale=2.0, records=None", {"x": TEXTS, "scale": 2.0, "records": RECORDS}),
        ("records, texts", {"texts": TEXTS, "records": RECORDS}),
        ("*both", {"both": (TEXTS, RECORDS)}),
        ("texts, *more", {"texts": TEXTS, "more": (RECORDS,)}),
        ("texts, /", {"texts": TEXTS}),
        ("texts, records, /", {"texts": TEXTS, "records": RECORDS}),
        ("prompts, completions", {"prompts": PROMPTS, "completions": TEXTS}),
        ("completions, prompts", {"prompts": PROMPTS, "completions": TEXTS}),
        ("completions, answer", {"completions": TEXTS, "answer": ANSWERS}),
        ("texts, id, answer", {"texts": TEXTS, "answer": ANSWERS, "id": IDS}),
        ("completions, prompt, *, id", {"completions": TEXTS, "prompt": PROMPTS, "id": IDS}),
        ("completions, id=None, absent=None", {"completions": TEXTS, "id": IDS, "absent": None}),
        (
            "prompts, completions, **kw",
            {"prompts": PROMPTS, "completions": TEXTS, "kw": {"answer": ANSWERS, "id": IDS}},
        ),
        (
            "completions, answer, **kw",
            {"completions": TEXTS, "answer": ANSWERS, "kw": {"prompts": PROMPTS, "id": IDS}},
        ),
        (
            "texts, **kw",
            {"texts": TEXTS, "kw": {"prompts": PROMPTS, "answer": ANSWERS, "id": IDS}},
        ),
        (
            "**kw",
            {"kw": {"completions": TEXTS, "prompts": PROMPTS, "answer": ANSWERS, "id": IDS}},
        ),
        (
            "prompts, **kw",
            {"prompts": PROMPTS, "kw": {"completions": TEXTS, "answer": ANSWERS, "id": IDS}},
        ),
    ],
)
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_function_is_given_what_its_parameters_are_called(tmp_path, parameters, given, kind):
    (tmp_path / "given.py").write_text(f"{kind} f({parameters}): return locals()")
    function = load_function(f"{tmp_path}/given.py:f", ["prompt", "answer", "id"])
    assert function.is_async == (kind != "def")
    found = function(tuple(TEXTS), tuple(RECORDS))
    assert (asyncio.run(found) if function.is_async else found) == given


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        ("", "takes (), which does not say what it wants"),
        ("*args, **kwargs", "takes (*args, **kwargs), which does not say what it wants"),
        ("texts, answers", "takes (texts, answers), but the records have no field 'answers' (they"),
        ("a: list[str], b: list", "takes (a, b), but the records have no field 'b' (they have ans"),
        ("completions, completion_ids, **kw", "have no field 'completion_ids' (they have answer,"),
        ("texts, *, scale", "but the records have no field 'scale' (they have answer, id, prompt)"),
        ("prompts", "takes (prompts), so it is given no texts"),
        ("prompts, answer", "takes (prompts, answer), so it is given no texts"),
        ("answer", "takes (answer), so it is given no texts"),
        ("records", "takes (records), so it is given no texts"),
    ],
)
def test_a_function_that_would_be_given_something_wrong_is_refused(tmp_path, parameters, why):
    (tmp_path / "given.py").write_text(f"def f({parameters}): ...")
    with pytest.raises(InputError) as error:
        load_function(f"{tmp_path}/given.py:f", ["prompt", "answer", "id"])
    line = str(error.value)
    assert why in line and "\n" not in line and line.startswith("the reward function ")
    assert line.endswith(f"; expected {SIGNATURES}")
    assert "TRL" in SIGNATURES and "verl" in SIGNATURES


@pytest.mark.parametrize(
    ("source", "is_async"),
    [
        ("f = len", False),
        ("f = type", False),
        ("class C:\n    async def __call__(self, texts): return [1]\nf = C()", True),
        ("import functools\nasync def g(a, b): return [1]\nf = functools.partial(g, b=1)", True),
        (
            "import functools\ndef g(texts): return [1]\n"
            "@functools.wraps(g)\ndef f(*args, **kw): return g(*args, **kw)",
            False,
        ),
    ],
)
def test_callables_of_many_kinds(tmp_path, source, is_async):
    (tmp_path / "given.py").write_text(source)
    function = load_function(f"{tmp_path}/given.py:f", ["prompt"])
    assert function.is_async == is_async and len(function.outcomes(["a"], [RECORDS[0]])) == 1


def test_the_working_folder_is_searched(tmp_path, monkeypatch):
    (tmp_path / "only_here_4711.py").write_text("def f(texts, *more): return [1.0] * len(texts)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert load_function("only_here_4711:f")(["a"], [{}]) == [1.0]


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
        ("tests.tasks.reward_functions:os", "has no function 'os'$"),
        ("tests.tasks.reward_functions:nothing_to_call", r"takes \(\), .*expected \(texts\)"),
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
    floats = [1, 0.5, np.float32(2), np.array(3.0), jnp.float32(4), True, Fraction(1, 2)]
    found = outcomes_of(floats, len(floats))
    assert [v[0] for v in found] == [1, 0.5, 2, 3, 4, 1, 0.5]
    assert [v[1] for v in found] == [True, False, True, True, True, True, False]
    assert [v[0] for v in outcomes_of(np.arange(3), 3)] == [0, 1, 2]
    assert [v[0] for v in outcomes_of(jnp.arange(3.0), 3)] == [0, 1, 2]
    given = [{"reward": 0.5, "correct": True, "formatted": False}, {"reward": 2}]
    assert outcomes_of(given, 2) == [Verdict(0.5, True, False), Verdict(2, True, True)]
    truths = [{"score": 0, "acc": np.float32(1)}, {"score": 2, "acc": None, "formatted": None}]
    assert outcomes_of(truths, 2) == [Verdict(0, True, True), Verdict(2, True, True)]
    no_truth = [{"reward": 1, "correct": "False"}, {"score": 1, "acc": [1]}]
    assert [each[0] for each in outcomes_of(no_truth, 2)] == ["wrong", "wrong"]
    assert "returned as 'correct' a str; expected" in str(outcomes_of(no_truth, 2)[0][1])
    assert outcomes_of((x for x in [0.0]), 1) == [Verdict(0, False, True)]
    far = [Verdict(3.4e38, True, True), Verdict(-3.4e38, False, True)]
    assert outcomes_of([3.4e38, -3.4e38], 2) == far


SCALARS = [None, "x", b"", [], {}, {"reward": None}, 10**400, -(10**5000), math.nan, math.inf]
SCALARS += [1j, object(), np.ones(2), np.float64("nan"), np.array("x"), np.longdouble("1e4000")]
SCALARS += [{"reward": 1, "correct": np.ones(2)}, 3.5e38, 0.5, True, np.int8(3), range, ...]


@given(st.lists(st.sampled_from(SCALARS), max_size=6), st.integers(0, 6))
@settings(derandomize=True, deadline=None, max_examples=200)
def test_whatever_is_returned_is_a_verdict_or_a_failure_of_a_known_kind(results, count):
    try:
        found = outcomes_of(results, count)
    except Unusable as error:
        assert len(results) != count and failure_of(error).kind == "wrong"
        return
    assert len(found) == count
    for outcome in found:
        if isinstance(outcome, Failed):
            assert outcome.kind in KINDS and one_line(outcome.line) == outcome.line
        else:
            assert math.isfinite(np.float32(outcome.reward))
    json.dumps(found)  # as a worker answers


@pytest.mark.parametrize("results", [{0.5, 1.0}, frozenset([0.5, 1.0]), {0.5: 1, 1.0: 2}, "12"])
def test_results_without_an_order_are_no_rewards(results):
    with pytest.raises(Unusable) as error:
        outcomes_of(results, 2)
    kind, line = failure_of(error.value)
    assert kind == "wrong" and line.endswith("; expected a list of 2 floats")


def test_what_a_function_raises_is_one_line_with_its_place():
    function = load_function("tests.tasks.reward_functions:misbehave")
    with pytest.raises(KeyError) as error:
        function(["raise"], [{}])
    kind, line = failure_of(error.value)
    assert kind == "raised" and line.startswith("KeyError: 'a key") and "\n" not in line
    assert line.endswith(")") and "(reward_functions.py:" in line
    assert failure_of(ValueError()) == ("raised", "ValueError")
    assert failure_of(ValueError("\x1b[31mred\nblue")) == ("raised", "ValueError: \ufffd[31mred")
