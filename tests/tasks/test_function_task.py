"""Prompts from a file and a reward function, in this process and in killable ones."""

import json
import math
import os
import time

import pytest

from springroll import worker
from springroll.errors import InputError
from springroll.tasks.task_line import text_task
from springroll.tasks.user_task import WorkerPool, function_task
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise", r"raised KeyError: 'a key.*\(reward_functions.py:"),
        ("leave", "raised SystemExit: 1"),
        ("nan", "returned nan for text 0"),
        ("two", "returned 2 results for 1 texts"),
    ],
)
def test_in_this_process_a_bad_function_is_one_line(data, text, message, capsys):
    task = task_of("misbehave", data)
    with pytest.raises(InputError, match=message):
        task.score([task.train(0)], [text])


def test_async_calls_run_side_by_side_and_fail_alone(data, capfd):
    task = task_of("waits", data, timeout=2.0)
    texts = ["a" * i for i in range(30)] + ["forever", "raise"]
    reward_functions.waiting[:] = [0]
    found = task.score([task.train(i) for i in range(32)], texts)
    assert max(reward_functions.waiting) == 32
    assert [v.reward for v in found[:30]] == list(range(30))
    assert all(math.isnan(v.reward) and not v.correct for v in found[30:])
    assert task.failures == {"timeout": 1, "raised": 1}
    assert "waits raised OSError: no answer (reward_functions.py:" in capfd.readouterr().err


def test_async_calls_of_several_rows(data):
    task = task_of("waits", data, timeout=20.0, rows=3)
    found = task.score([task.train(0)] * 5, ["a", "b", "raise", "dddd", "e"])
    assert [v.reward for v in found[3:]] == [4, 1] and task.failures == {"raised": 3}


def test_a_worker_that_misbehaves_costs_its_own_texts(data, tmp_path, capfd):
    task = task_of("misbehave", data, isolated=True, timeout=2.0)
    pid = tmp_path / "pid"
    texts = ["fine", "sleep", f"start {pid}", "die", "raise", "leave", "read", "fine", "spin", "ok"]
    found = task.score([task.train(i) for i in range(len(texts))], texts)
    nan = [i for i, v in enumerate(found) if math.isnan(v.reward)]
    assert nan == [1, 2, 3, 4, 5, 8]
    assert [found[i].reward for i in (0, 6, 7, 9)] == [4, 0, 4, 2]
    assert task.failures == {"timeout": 3, "crashed": 2, "raised": 1}
    assert "misbehave raised KeyError: 'a key" in capfd.readouterr().err
    assert gone(int(pid.read_text()))  # what the worker had started was killed with it
    again = task.score([task.train(0)] * 2, ["still", "here"])
    assert [v.reward for v in again] == [5, 4]
    for text, message in [("nan", "returned nan"), ("two", "returned 2 results")]:
        with pytest.raises(InputError, match=message):
            task.score([task.train(0)], [text])
    task.close()


def gone(pid):
    for _ in range(200):
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
        assert task.failures == {}


def test_texts_that_are_no_unicode_reach_the_worker(data):
    task = task_of("letters", data, isolated=True, workers=1)
    assert task.score([task.train(0)], ["\ud800\0\u2028\n"])[0].reward == 4
    task.close()


def test_a_function_that_cannot_be_loaded_is_found_at_once(monkeypatch, tmp_path):
    pool = lambda name: WorkerPool(name, workers=1, timeout=1.0, rows=1)
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
        ({"workers": 0}, "all must be above 0"),
        ({"timeout": 0.0}, "all must be above 0"),
        ({"style": "loud"}, "expected plain or instruct"),
        ({"data": "./absent.jsonl"}, r"cannot read absent\.jsonl"),
    ],
)
def test_impossible_function_tasks_are_one_line(data, options, message):
    with pytest.raises(InputError, match=message):
        function_task("tests.tasks.reward_functions:letters", **({"data": data} | options))
