"""Several rewards in one: the sum by TRL's rule, and each for itself in the figures."""

import json
import math

import pytest

from springroll.errors import InputError
from springroll.tasks.reward_function import Failed
from springroll.tasks.task_line import task_of_line
from springroll.tasks.verdicts import Verdict
from springroll.tasks.weighted import Term, terms_of, weighted

CODE = """
def length(texts): return [len(text) for text in texts]
def first(completions, **kw): return [None if c[0] == "x" else float(c[0]) for c in completions]
def compute_score(solution_str, ground_truth): return {"score": solution_str == ground_truth}
def never(texts): return [None] * len(texts)
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "code.py").write_text(CODE)
    records = [{"prompt": f"p{i}", "answer": "3a"} for i in range(8)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, records)))
    return tmp_path


def judged(place, line, texts, **options):
    name = " ".join(
        f"{place}/code.py:{word}" if word[0].isalpha() else word for word in line.split()
    )
    task = task_of_line(name, data=str(place / "data.jsonl"), **options)
    found = task.score([task.train(i) for i in range(len(texts))], texts)
    task.close()
    return task, found


@pytest.mark.parametrize(
    "options", [{}, {"isolated": True, "workers": 1}], ids=["here", "isolated"]
)
def test_the_reward_is_the_weighted_sum_of_those_that_apply(place, options):
    line = "length*0.5 + first*-1 + compute_score*10"
    task, found = judged(place, line, ["3a", "x", "a", "22"], **options)
    assert task.parts == ("length", "first", "compute_score")
    assert [v.reward for v in found[:2]] == [0.5 * 2 - 3 + 10, 0.5 * 1]
    assert found[0].parts == (2, 3, 1) and found[1].parts[::2] == (1, 0)
    assert math.isnan(found[1].parts[1])
    assert math.isnan(found[2].reward) and found[2].parts == ()  # float("a") raises
    assert found[3].reward == 0.5 * 2 - 2
    assert task.failures.counts == {"raised": 1}


def test_a_text_to_which_none_applies_has_no_reward(place, capfd):
    task, found = judged(place, "first + never", ["x", "1"])
    assert math.isnan(found[0].reward) and found[1].reward == 1
    assert task.failures.counts == {"none": 1}
    said = "it returned None, which says that it does not apply; prompt"
    assert said in capfd.readouterr().err
    line = "answers that could not be scored: 1 had no reward that applies, the first: it returned"
    assert task.failures.line.startswith(line)


def test_a_lone_function_may_have_a_weight(place):
    task, found = judged(place, "length*2", ["abc"])
    assert found == [Verdict(6, True, True)] and task.parts == ()


def test_a_sum_is_correct_if_all_that_apply_say_so():
    good, bad, none = Verdict(1, True, True), Verdict(0, False, True), Failed("none", "")
    assert weighted([1, 1], [good, none])[:3] == (1, True, True)
    assert weighted([1, 1], [good, bad])[:3] == (1, False, True)
    assert weighted([1, 1], [none, none]) == none
    assert weighted([1, 1], [none, Failed("nan", "x")]) == Failed("nan", "x")
    beyond = weighted([3e38, 3e38], [good, good])
    assert isinstance(beyond, Failed) and beyond.kind == "nan"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a:f", [("a:f", 1.0, "f")]),
        ("a.py:f*0.7+b.py:g*1e-3", [("a.py:f", 0.7, "f"), ("b.py:g", 1e-3, "g")]),
        ("a:f * 2 + b:g", [("a:f", 2.0, "f"), ("b:g", 1.0, "g")]),
        ("a+b/c*d.py:f+C:\\x.py:g*-.5", [("a+b/c*d.py:f", 1.0, "f"), ("C:\\x.py:g", -0.5, "g")]),
        ("a/x.py:f+b/x.py:f", [("a/x.py:f", 1.0, "a_x_py_f"), ("b/x.py:f", 1.0, "b_x_py_f")]),
    ],
)
def test_sums_are_read(line, expected):
    assert terms_of(line) == [Term(*each) for each in expected]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a:f+", "no reward function ''; expected module:function"),
        ("a:f+b", "no reward function 'b'; expected module:function or file.py:function, and of"),
        ("+a:f*", "the weight of .*a:f is ''; expected a finite number other than 0"),
        ("a:f*0+b:g", "the weight of a:f is '0'; expected a finite number"),
        ("a:f*nan", "the weight of a:f is 'nan'"),
        ("a:f*1e39", "the weight of a:f is '1e39'"),
        ("a:f*two", "the weight of a:f is 'two'"),
        ("a:f+a:f*2", "the reward function a:f stands in the sum twice; give it one weight"),
    ],
)
def test_sums_that_are_none(line, message):
    with pytest.raises(InputError, match=message):
        terms_of(line)


@pytest.mark.parametrize(
    ("written", "stop"),
    [(r"\n", "\n"), (r"'\n\n'", "\n\n"), (r"\\n", "\\n"), (r'"a\tb"', "a\tb"), (r"\q", r"\q")],
)
def test_a_newline_in_a_task_line(place, written, stop):
    task, _ = judged(place, "length", [], stop=())
    line = f"{place}/code.py:length stop={written}"
    task = task_of_line(line, data=str(place / "data.jsonl"))
    assert task.stop == (stop,)
