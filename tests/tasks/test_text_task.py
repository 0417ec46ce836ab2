"""Tasks by name, the text to pretrain on, and the report."""

import math
import subprocess
import sys
from collections import Counter

import pytest

from springroll.errors import InputError
from springroll.tasks.problem import spoken, until_stop
from springroll.tasks.sources import SURFACES, document, training_text
from springroll.tasks.task_line import text_task
from springroll.tasks.verdicts import UNSCORED, Verdict, report
from tests.tasks.worked import worked


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sudoku", {}, "no task 'sudoku'; expected arithmetic, countdown, gsm8k or module:func"),
        ("arithmetik", {}, r"no task 'arithmetik'; did you mean arithmetic\?"),
        ("countdown", {"number": 2}, r"has no option 'number'; did you mean numbers\?"),
        ("countdown", {"digits": 2}, "countdown has no option 'digits'; it has seed, numbers"),
        ("a:b", {"loud": 2}, "a:b has no option 'loud'; it has data"),
        ("a:b", {}, "a:b needs the option 'data', of commands --data"),
    ],
)
def test_unknown_names_and_options(name, options, message):
    with pytest.raises(InputError, match=message):
        text_task(name, **options)


@pytest.mark.parametrize("name", ["arithmetic", "countdown"])
def test_a_task_is_recognised_by_its_options(name):
    identity = lambda **options: text_task(name, **options).identity
    assert identity() == identity(seed=0) != identity(seed=1)
    assert identity(reward="exact") != identity() != identity(style="instruct")
    assert text_task(name).train_size is None and text_task(name).failures.total == 0


def test_the_first_stop_ends_a_text():
    assert until_stop("a\nb", ()) == "a\nb"
    assert until_stop("aENDb\nc", ("\n", "END")) == "a"
    assert until_stop("abc", ("\n",)) == "abc"


@pytest.mark.parametrize("name", ["arithmetic", "countdown"])
@pytest.mark.parametrize("style", ["plain", "instruct"])
@pytest.mark.parametrize("surface", ["plain", "hash", "boxed", "tag", "sentence"])
def test_documents_are_judged_correct_where_their_answer_stands(name, style, surface):
    answer = {"plain": "whole", "sentence": "last"}.get(surface, surface)
    if surface == "sentence" and name == "countdown":
        return  # a sentence is no expression
    task = text_task(name, style=style, answer=answer)
    plain, worked = (training_text(task, {s: 1}) for s in (surface, f"worked {surface}"))
    for index in range(20):
        problem = task.train(index)
        for write in (plain, worked) if answer not in ("whole",) else (plain,):
            text = write(index)
            prompt = spoken(problem.prompt)
            assert text.startswith(prompt)
            assert task.score([problem], [text.removeprefix(prompt).lstrip()])[0].correct
        assert len(worked(index)) >= len(plain(index))


def test_styles_have_their_shares():
    task = text_task("arithmetic")
    shares = {"plain": 6, "hash": 3, "worked boxed": 1}
    write = training_text(task, shares, seed=5)
    kind = lambda text: "hash" if "#" in text else "boxed" if "boxed" in text else "plain"
    counts = Counter(kind(write(i)) for i in range(2000))
    for name, share in [("plain", 0.6), ("hash", 0.3), ("boxed", 0.1)]:
        assert abs(counts[name] / 2000 - share) < 0.04  # over 3.5 sigma
    assert [write(i) for i in range(20)] == [
        training_text(task, shares, seed=5)(i) for i in range(20)
    ]
    assert [write(i) for i in range(20)] != [training_text(task, shares)(i) for i in range(20)]


def test_a_worked_document():
    problem = worked(text_task("arithmetic", seed=0), 0)
    assert document(problem, "plain") == "21+8=29"
    assert document(problem, "worked hash") == "21+8=\n1+8=9\n20+0=20\n9+20=29\n#### 29"
    assert document(problem, "sentence", message=True) == "21+8=\nThe answer is 29."
    assert all("29" in document(problem, surface) for surface in SURFACES)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"loud": 1}, "no style 'loud'; expected one of plain, hash"),
        ({}, "expected positive numbers"),
        ({"plain": 0}, "expected positive numbers"),
        ({"plain": 2, "hash": -1}, "expected positive numbers"),
    ],
)
def test_impossible_shares(shares, message):
    with pytest.raises(InputError, match=message):
        training_text(text_task("arithmetic"), shares)


def test_only_generated_tasks_can_be_written_down(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}')
    task = text_task("tests.tasks.reward_functions:letters", data=str(tmp_path / "x.jsonl"))
    with pytest.raises(InputError, match="has no solutions to write down"):
        training_text(task)


def test_a_report_has_all_its_figures():
    verdicts = [Verdict(1.0, True, True), Verdict(0.1, False, True), Verdict(0, False, False)]
    found = report([*verdicts, UNSCORED], [3, 5, 16, 16], [False, False, True, True])
    assert found == {
        "accuracy": 0.25,
        "format_rate": 0.5,
        "truncation_rate": 0.5,
        "mean_length": 10,
        "reward": pytest.approx(1.1 / 3),
        "unscored": 1,
    }


def test_a_report_of_nothing_scored():
    found = report([UNSCORED], [1], [False])
    assert math.isnan(found["reward"]) and found["unscored"] == 1 and found["accuracy"] == 0
    assert math.isnan(report([], [], [])["accuracy"])
    with pytest.raises(ValueError, match="1 verdicts, 0 lengths, 1 truncated"):
        report([UNSCORED], [], [True])


def test_problems_never_change():
    """Runs are resumed, and models trained and judged, by these very problems."""
    prompts = lambda name, **options: [text_task(name, **options).train(i).prompt for i in range(3)]
    assert prompts("arithmetic") == ["21+8=", "35+54=", "36+98="]
    assert prompts("arithmetic", seed=7, digits=3, operators="+-*") == [
        "493+341=",
        "426-359=",
        "124+108=",
    ]
    assert prompts("countdown") == ["42,70,50>162:", "45,48,60>64:", "61,43,1>103:"]
    assert text_task("countdown").held_out(0).prompt == "67,29,56>152:"


def test_rooms_of_tasks_and_tokenizers_import_no_jax():
    """A worker of a reward function starts with them."""
    modules = "task_line, springroll.tokens.tokenizer, springroll.hub"
    code = f"import sys, springroll.tasks.{modules}; print('jax' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "False", found.stderr
