"""GSM8K from a folder and from the hub, with a data set of a few lines."""

import json
import re
import sys
import types
from fractions import Fraction

import pytest

from springroll.errors import InputError
from springroll.program import pip_install
from springroll.tasks.gsm8k import gsm8k_task, judge

TRAIN = [(f"What is {i} thousand?", f"It is <<{i}*1000>>.\n#### {i},000") for i in range(1, 8)]
TEST = [
    ("Half of five?", "5/2\n#### 2.5"),
    ("Debt?", "#### -3"),
    ("What  is 1 thousand?", "#### 1"),
]


def lines(pairs):
    return "".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in pairs)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train.jsonl").write_text(lines(TRAIN))
    (tmp_path / "test.jsonl").write_text(lines(TEST) + "\n")
    return tmp_path


def test_problems_and_their_order(folder):
    task = gsm8k_task(data=str(folder))
    assert (task.train_size, task.held_out_size) == (6, 3)  # one question is in both files
    epochs = [[task.train(6 * epoch + i) for i in range(6)] for epoch in range(3)]
    questions = [{p.reference["question"] for p in epoch} for epoch in epochs]
    assert questions[0] == questions[1] == questions[2] == {q for q, _ in TRAIN[1:]}
    assert epochs[0] != epochs[1] != epochs[2]
    assert [task.train(i) for i in range(18)] == [p for epoch in epochs for p in epoch]
    other = gsm8k_task(data=str(folder), seed=1)
    assert [other.train(i) for i in range(6)] != epochs[0]
    assert [other.held_out(i) for i in range(3)] == [task.held_out(i) for i in range(3)]


def test_answers_are_numbers(folder):
    task = gsm8k_task(data=str(folder))
    numbers = {p.reference["answer"] for p in map(task.held_out, range(3))}
    assert numbers == {"5/2", "-3", "1"}
    assert all(Fraction(task.train(i).reference["answer"]) % 1000 == 0 for i in range(6))


@pytest.mark.parametrize(
    ("text", "answer", "reward", "correct", "formatted"),
    [
        ("so\n#### 2.5", "hash", 1.0, True, True),
        ("#### 5/2 kg", "hash", 1.0, True, True),
        ("#### 2", "hash", 0.1, False, True),
        ("2.5", "hash", 0.0, False, False),
        ("it costs $2.50.", "last", 1.0, True, True),
        (r"\boxed{\frac{5}{2}}", "boxed", 1.0, True, True),
    ],
)
def test_verdicts(text, answer, reward, correct, formatted):
    verdict = judge(text, "5/2", answer, "smooth")
    assert verdict[:3] == (pytest.approx(reward), correct, formatted)
    assert judge(text, "5/2", answer, "exact").reward == float(correct)


def test_base_models_are_asked_plainly(folder):
    task = gsm8k_task(data=str(folder), style="plain")
    problem = next(p for p in map(task.held_out, range(3)) if p.reference["answer"] == "-3")
    assert problem.prompt == "Question: Debt?\nAnswer:"
    (verdict,) = task.score([problem], [" I owe.\n#### -3\nQuestion: next\n#### 7"])
    assert verdict.correct
    assert "####" in gsm8k_task(data=str(folder)).held_out(0).prompt


def test_the_files_are_part_of_the_identity(folder):
    before = gsm8k_task(data=str(folder)).identity
    (folder / "train.jsonl").write_text(lines(TRAIN[:-1]))
    after = gsm8k_task(data=str(folder)).identity
    assert before["task"] == after["task"] and before["data"] != after["data"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no records"),
        ("{}\n", "line 1 of .*train.jsonl has no text under 'question'"),
        ("[]\n", "line 1 of .*train.jsonl is a list; expected an object with named fields"),
        ('{"question": "a", "answer": 3}', "no text under 'answer'"),
        ('{"question": "a", "answer": "#### 1"}\n{"ques', "line 2 of .* is not JSON"),
        ('{"question": "a", "answer": "12"}', "has no number after ####: '12'"),
        (lines(TEST), "all training problems of .* are in its test set too"),
    ],
)
def test_damaged_files_are_one_line(folder, content, message):
    (folder / "train.jsonl").write_text(content)
    with pytest.raises(InputError, match=message) as error:
        gsm8k_task(data=str(folder))
    assert "\n" not in str(error.value)


def test_files_of_another_kind(folder, monkeypatch):
    plain = gsm8k_task(data=str(folder))
    (folder / "main").mkdir()
    for name in ("train", "test"):
        (folder / f"{name}.jsonl").rename(folder / "main" / f"{name}-00000-of-00001.ndjson")
    task = gsm8k_task(data=str(folder / "main"))
    assert [task.train(i) for i in range(6)] == [plain.train(i) for i in range(6)]
    assert (task.held_out_size, task.identity) == (3, plain.identity)
    (folder / "main" / "test-00000-of-00001.ndjson").unlink()
    with pytest.raises(InputError, match="holds no test set: no file whose name begins with test"):
        gsm8k_task(data=str(folder / "main"))
    monkeypatch.chdir(folder)  # a file may be called as a data set of the hub is
    with pytest.raises(InputError, match=r"holds no test set: .*; give a folder with train\.jsonl"):
        gsm8k_task(data="main/train-00000-of-00001.ndjson")


def test_missing_and_unreadable_files_are_named(folder):
    (folder / "test.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"test\.jsonl is no text in UTF-8"):
        gsm8k_task(data=str(folder))
    (folder / "test.jsonl").unlink()
    with pytest.raises(InputError, match=r"cannot read .*test\.jsonl: No such file"):
        gsm8k_task(data=str(folder))
    with pytest.raises(InputError, match=r"no folder ./nope; give one with train\.jsonl"):
        gsm8k_task(data="./nope")


def hub(monkeypatch, load, online=True):
    monkeypatch.setattr("springroll.hub.reachable", lambda: online)
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load))


def test_the_hub(monkeypatch):
    rows = {"train": TRAIN, "test": TEST}
    asked = []

    def load(name, config, split):
        asked.append((name, config, split))
        return [{"question": q, "answer": a, "more": 1} for q, a in rows[split]]

    hub(monkeypatch, load)
    task = gsm8k_task()
    assert task.train_size == 6 and task.held_out_size == 3
    assert asked == [("openai/gsm8k", "main", "train"), ("openai/gsm8k", "main", "test")]


def test_a_hub_that_fails_is_one_line(monkeypatch):
    def load(*_, **__):
        raise ConnectionError("broken\npipe")

    hub(monkeypatch, load)
    with pytest.raises(InputError, match="gsm8k: broken; give a folder"):
        gsm8k_task()
    hub(monkeypatch, lambda *_, **__: [{"question": "1 + 1?"}])
    with pytest.raises(InputError, match="openai/gsm8k lacks question or answer in a row"):
        gsm8k_task()
    hub(monkeypatch, load, online=False)
    with pytest.raises(InputError, match="cannot be reached from here; give a folder"):
        gsm8k_task()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=re.escape(pip_install("data"))):
        gsm8k_task()
