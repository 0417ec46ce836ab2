"""Prompts from a file and a reward function, in this process and in killable ones."""

import json
import math
import os
import time

import pytest

from springroll import worker
from springroll.errors import InputError
from springroll.tasks import user_task
from springroll.tasks.task_line import text_task
from springroll.tasks.user_task import function_task
from springroll.tasks.worker_pool import WorkerPool
from tests.tasks import reward_functions


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "prompts.jsonl"
    records = [{"prompt": f"Say {i}", "worth": i} for i in range(40)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def task_of(function, data, **options):
    return text_task(f"tests.tasks.reward_functions:{function}", data=data, **options)


def test_records_are_passed_on_whole(data):
    task = task_of("with_records", data)
    problems = [task.train(i) for i in range(4)]
    assert all(p.prompt == f"Say {p.reference['worth']}" for p in problems)
    found = task.score(problems, ["ab"] * 4)
    assert [v.reward for v in found] == [2 * p.reference["worth"] for p in problems]
    assert task.chat and task.name == "tests.tasks.reward_functions:with_records"


def test_a_function_may_change_what_it_is_given(tmp_path):
    records = [{"prompt": [{"role": "user", "content": text}]} for text in "abc"]
    (tmp_path / "talk.json").write_text(json.dumps(records))
    task = task_of("changing", str(tmp_path / "talk.json"))
    assert [v.reward for v in task.score([task.train(0)] * 2, ["x", "y"])] == [1, 1]
    assert task.train(0).prompt in [record["prompt"] for record in records]
    assert task.train(0).reference in records


def test_sides_are_apart_and_complete(data, tmp_path):
    task = task_of("letters", data)
    side = lambda at, size: {at(i).prompt for i in range(size)}
    train = side(task.train, task.train_size)
    held_out = side(task.held_out, task.held_out_size)
    assert len(train) + len(held_out) == 40 and not train & held_out and held_out
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "Say 3"}\n{"prompt": "new"}\n')
    task = task_of("letters", data, held_out_data=str(other))
    assert (task.train_size, task.held_out_size) == (39, 2)
    assert set(task.identity) == {"task", "data", "held_out_data"}


def test_two_prompts_are_enough_and_one_is_not(tmp_path):
    path = tmp_path / "few.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    task = task_of("letters", str(path))
    assert {task.train(0).prompt, task.held_out(0).prompt} == {"a", "b"}
    path.write_text('{"prompt": "a"}\n{"prompt": "a"}\n')
    with pytest.raises(InputError, match="holds no prompt that is not held out"):
        task_of("letters", str(path))


def test_answers_end_at_the_stop(data):
    task = task_of("letters", data, stop=("\n", "END"))
    problems = [task.train(0)] * 3
    assert [v.reward for v in task.score(problems, ["abEND", "abc\nEND", "a"])] == [2, 3, 1]
    assert task_of("letters", data, stop="\n").stop == ("\n",)
    with pytest.raises(ValueError, match="3 problems and 1 texts"):
        task.score(problems, ["a"])


WAYS = [{}, {"isolated": True, "workers": 1}, {"isolated": True, "workers": 1, "rows": 9}]
BAD = {  # what the function does to a text: kind, what is said of it
    "raise": ("raised", "it raised KeyError: 'a key\\nof two lines' (reward_functions.py:"),
    "leave": ("raised", "it raised SystemExit: 1 (reward_functions.py:"),
    "none": ("none", "it returned None, which says that it does not apply"),
    "word": ("wrong", "it returned a str; expected a finite float"),
    "array": ("wrong", "it returned an array of shape [2]; expected a finite float"),
    "dict": ("wrong", "it returned a dict without 'reward' or 'score'"),
    "nan": ("nan", "it returned nan; expected a finite float"),
    "inf": ("nan", "it returned inf; expected a finite float"),
    "large": ("nan", "it returned 1e+300; expected a finite float of 32 bits"),
    "huge": ("nan", "it returned a number too large for a float; expected a finite float"),
    "fraction": ("nan", "it returned a number too large for a float; expected a finite float"),
    "unreadable": ("raised", "it raised ZeroDivisionError: division by zero"),
    "two": ("wrong", "it returned more than 1 results for 1 texts; expected one float per text"),
    "no list": ("wrong", "it returned a float; expected a list of 1 floats"),
    "nothing": ("wrong", "it returned None; expected a list of 1 floats"),
    "text": ("wrong", "it returned a str; expected a list of 1 floats"),
    "empty": ("wrong", "it returned 0 results for 1 texts; expected one float per text"),
    "endless": ("wrong", "it returned more than 1 results for 1 texts; expected one"),
    "broken generator": ("raised", "it raised OSError: the line is cut (reward_functions.py:"),
    "panic": ("raised", "it raised BaseException: panicked at lib.rs (reward_functions.py:"),
    "broken error": ("raised", "it raised Unprintable (reward_functions.py:"),
}


@pytest.mark.parametrize("options", WAYS, ids=["here", "isolated", "isolated rows"])
def test_whatever_a_text_makes_the_function_do_costs_that_text(data, options, capfd):
    task = task_of("misbehave", data, **options)
    texts = [word for text in BAD for word in (text, "fine")]
    found = task.score([task.train(i) for i in range(len(texts))], texts)
    nan = [text for text, verdict in zip(texts, found, strict=True) if math.isnan(verdict.reward)]
    assert nan == [*BAD] and not any(v.correct or v.formatted for v in found[::2])
    assert [v.reward for v in found[1::2]] == [4.0] * len(BAD)
    kinds = [kind for kind, _ in BAD.values()]
    assert task.failures.counts == {kind: kinds.count(kind) for kind in kinds}
    shown = capfd.readouterr().err
    for kind in dict.fromkeys(kinds):  # the first of each kind, and no other
        text, (_, said) = next(item for item in BAD.items() if item[1][0] == kind)
        where = texts.index(text)
        (line,) = [line for line in shown.splitlines() if f"misbehave: {said}" in line]
        assert f"prompt '{task.train(where).prompt}', answer '{text}'" in line
    assert shown.count("the reward function") == len(set(kinds))
    for text, (kind, said) in BAD.items():
        before = task.failures.counts[kind]
        assert math.isnan(task.score([task.train(0)], [text])[0].reward)
        assert task.failures.counts[kind] == before + 1, said
    task.close()


@pytest.mark.parametrize("text", BAD)
def test_the_first_failure_is_told_with_its_prompt_and_answer(data, text, capfd):
    task = task_of("misbehave", data)
    answer = text + " \x1b[31m\n" + "x" * 1000
    kind, said = BAD[text]
    task.score([task.train(0)], [answer])
    shown = capfd.readouterr().err.removeprefix("this must not reach the pipe\n")
    assert f"misbehave: {said}" in shown and task.failures.counts == {kind: 1}
    assert f"prompt '{task.train(0).prompt}', answer '{text} \ufffd[31m xxx" in shown
    assert shown.endswith("xxx...'\n") and shown[:-1].isprintable() and len(shown) < 600
    assert task.failures.line.startswith("answers that could not be scored: 1 ")


def test_a_function_that_always_fails_is_not_called_for_every_text(data):
    task = task_of("misbehave", data)
    reward_functions.calls.clear()
    found = task.score([task.train(0)] * 500, ["raise"] * 500)
    assert all(math.isnan(verdict.reward) for verdict in found)
    assert task.failures.counts == {"raised": 500} and len(reward_functions.calls) == 1 + 32


def test_a_call_that_takes_long_is_told_once(data, monkeypatch):
    """While it lasts: the function waits for the line."""
    said = []
    tell = lambda line, **_: (said.append(line), reward_functions.told.set())
    monkeypatch.setattr(user_task, "LONG", 0.01)
    monkeypatch.setattr(user_task, "print", tell, raising=False)
    task = task_of("patient", data)
    for _ in range(2):
        assert task.score([task.train(0)], ["a"])[0].reward == 1
    assert len(said) == 1 and "reward_functions:patient has taken 0.01 s" in said[0]


def test_async_calls_run_side_by_side_and_fail_alone(data, capfd):
    task = task_of("waits", data, timeout=2.0)
    texts = ["a" * i for i in range(30)] + ["forever", "raise"]
    reward_functions.waiting[:] = [0]
    found = task.score([task.train(i) for i in range(32)], texts)
    assert max(reward_functions.waiting) == 32
    assert [v.reward for v in found[:30]] == list(range(30))
    assert all(math.isnan(v.reward) and not v.correct for v in found[30:])
    assert task.failures.counts == {"timeout": 1, "raised": 1}
    shown = capfd.readouterr().err
    assert "waits: it raised OSError: no answer (reward_functions.py:" in shown
    assert "waits: it took more than 2 s; prompt 'Say" in shown and "answer 'forever'" in shown


def test_async_calls_of_several_rows(data):
    task = task_of("waits", data, timeout=20.0, rows=3)
    texts = ["a", "bb", "raise", "dddd", "leave", "e", "nan", "cancel"]
    found = task.score([task.train(0)] * len(texts), texts)
    assert [v.reward for v in found if not math.isnan(v.reward)] == [1, 2, 4, 1]
    assert task.failures.counts == {"raised": 3, "nan": 1}


def test_a_worker_that_misbehaves_costs_its_own_texts(data, tmp_path, capfd):
    task = task_of("hangs_or_dies", data, isolated=True, timeout=2.0)
    pid = tmp_path / "pid"
    texts = ["fine", "sleep", f"start {pid}", "die", "raise", "leave", "read", "fine", "spin", "ok"]
    found = task.score([task.train(i) for i in range(len(texts))], texts)
    nan = [i for i, v in enumerate(found) if math.isnan(v.reward)]
    assert nan == [1, 2, 3, 4, 5, 8]
    assert [found[i].reward for i in (0, 6, 7, 9)] == [4, 0, 4, 2]
    assert task.failures.counts == {"timeout": 3, "crashed": 1, "raised": 2}
    shown = capfd.readouterr().err
    assert "hangs_or_dies: it raised KeyError: 'a key" in shown
    assert "hangs_or_dies: it crashed; prompt 'Say" in shown and "answer 'die'" in shown
    assert gone(int(pid.read_text()))  # what the worker had started was killed with it
    again = task.score([task.train(0)] * 2, ["still", "here"])
    assert [v.reward for v in again] == [5, 4]
    task.close()


@pytest.mark.parametrize(("end", "kind"), [("hold", "timeout"), ("hold-and-die", "crashed")])
def test_no_child_keeps_the_run_or_outlives_its_worker(data, tmp_path, end, kind):
    """Two processes in sessions of their own hold the pipes that the answer is awaited on."""
    task = task_of("hangs_or_dies", data, isolated=True, workers=1, timeout=2.0)
    pids = tmp_path / "pids"
    task.score([task.train(0)], [f"{end} {pids}"])
    assert task.failures.counts == {kind: 1}
    assert all(gone(int(pid)) for pid in pids.read_text().split())
    assert [v.reward for v in task.score([task.train(0)], ["fine"])] == [4]
    task.close()


def test_a_child_that_comes_back_from_the_call_answers_nothing(data):
    task = task_of("hangs_or_dies", data, isolated=True, workers=1)
    for text in ("come-back", "fine", "come-back", "good!"):
        assert next(v.reward for v in task.score([task.train(0)], [text])) == len(text)
    task.close()


def gone(pid):
    for _ in range(3000):
        try:
            os.kill(pid, 0)
            with open(f"/proc/{pid}/stat") as file:  # a zombie of a parent that does not look
                if ") Z" in file.read():
                    return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.02)
    return False


def test_isolated_functions_see_records_async_ones_too(data):
    for name, reward in [("with_records", 15), ("waits", 3), ("arrays", 3)]:
        task = task_of(name, data, isolated=True, workers=1, rows=2)
        problems = [task.train(0)._replace(reference={"worth": 5})] * 3
        assert [v.reward for v in task.score(problems, ["abc"] * 3)] == [reward] * 3
        task.close()
        assert task.failures.total == 0


def test_texts_that_are_no_unicode_reach_the_worker(data):
    task = task_of("letters", data, isolated=True, workers=1)
    assert task.score([task.train(0)], ["\ud800\0\u2028\n"])[0].reward == 4
    task.close()


def test_a_function_that_cannot_be_loaded_is_found_at_once(monkeypatch, tmp_path):
    pool = lambda name: WorkerPool(name, ["prompt"], workers=1, timeout=1.0, rows=1)
    with pytest.raises(InputError, match="no module 'no_such_module_3'"):
        pool("no_such_module_3:f")
    (tmp_path / "dies.py").write_text("import os; os._exit(1)")
    with pytest.raises(InputError, match="cannot be loaded in a process of its own: crashed"):
        pool(f"{tmp_path}/dies.py:f")
    (tmp_path / "hangs.py").write_text("import time; time.sleep(1000)")
    monkeypatch.setattr(worker, "LOADING", 0.5)
    with pytest.raises(InputError, match="cannot be loaded in a process of its own: timeout"):
        pool(f"{tmp_path}/hangs.py:f")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers is 0; it must be from 1 to 1,024"),
        ({"workers": 10**30}, "workers is 10+; it must be from 1 to 1,024"),
        ({"workers": 1.5}, "workers is 1.5; expected a whole number"),
        ({"rows": -1}, "rows is -1; it must be at least 1"),
        ({"rows": 10**400}, "rows is a number of over 40 digits; it must be at most 2,147,483,6"),
        ({"timeout": 0.0}, "timeout is 0.0; it must be above 0 and at most 1,000,000"),
        ({"timeout": math.nan}, "timeout is nan; it must be above 0 and at most 1,000,000"),
        ({"timeout": math.inf}, "timeout is inf; it must be above 0 and at most 1,000,000"),
        ({"stop": ("\n", "")}, "a stop string is empty; every text would end before it begins"),
        ({"style": "loud"}, "expected plain or instruct"),
        ({"data": "./absent.jsonl"}, r"cannot read absent\.jsonl"),
        ({"data": "/dev/zero"}, "cannot read /dev/zero: it is no file, but a pipe or a device"),
    ],
)
def test_impossible_function_tasks_are_one_line(data, options, message):
    with pytest.raises(InputError, match=message):
        function_task("tests.tasks.reward_functions:letters", **({"data": data} | options))
