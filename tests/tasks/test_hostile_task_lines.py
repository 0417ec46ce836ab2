"""Every option of every task with hostile values: it is taken, or refused in one line at once."""

import inspect
import json
import shlex

import pytest

from springroll.errors import InputError
from springroll.tasks.task_line import TASKS, task_of_line
from springroll.tasks.user_task import function_task

HOSTILE = ["nan", "inf", "-inf", "-1", "0", "1e-300", "1e308", str(10**30), "", "abc", "\x1b[31m"]
HOSTILE += ["9" * 5000, "\u0664\u0666", "0x10", "None", "a\nb"]
OWN = "tests.tasks.reward_functions:letters"
OPTIONS = [
    (name, option, parameter)
    for name, make in {**TASKS, OWN: function_task}.items()
    for option, parameter in inspect.signature(make).parameters.items()
    if option not in ("function", "data", "held_out_data")
]


@pytest.mark.parametrize(("name", "option", "parameter"), OPTIONS)
def test_every_option_takes_a_value_or_refuses_it(name, option, parameter, tmp_path):
    data = tmp_path / "problems.jsonl"
    record = {"prompt": "a", "question": "1+1?", "answer": "#### 2"}
    data.write_text("".join(json.dumps(record | {"prompt": x, "question": x}) + "\n" for x in "ab"))
    number = parameter.annotation in ("int", "float", int, float)
    for value in HOSTILE:
        line = f"{name} {option}={shlex.quote(value)}"
        try:
            task = task_of_line(line, data=str(data))
            assert len(task.score([task.train(0)], ["46"])) == 1
        except InputError as error:
            assert str(error).isprintable() and len(str(error)) < 2100
        else:
            task.close()
            assert not number or value in ("-1", "0", str(10**30)), line
