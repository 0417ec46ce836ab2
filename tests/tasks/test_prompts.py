"""Prompts from columns of text and of messages."""

import json

import pytest

from springroll.errors import InputError
from springroll.tasks.problem import spoken
from springroll.tasks.prompts import problem_of, prompt_columns
from springroll.tasks.tables import Row
from springroll.tasks.user_task import function_task

OWN = "tests.tasks.reward_functions:letters"
TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
TURNS = [*TALK, {"role": "assistant", "content": "Ho"}, {"role": "user", "content": "And?"}]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]


def asked(record, prompt=None, answer=None):
    return problem_of(Row("record 7 of x", record), prompt_columns(record, prompt, "x"), answer)


@pytest.mark.parametrize("name", ["prompt", "question", "problem", "instruction", "input", "query"])
def test_usual_columns_are_found(name):
    problem = asked({"id": 3, name: "1+1?", "answer": "2", "text": "more"})
    assert problem.prompt == "1+1?" and problem.where == "record 7 of x"
    assert problem.reference == {"id": 3, name: "1+1?", "answer": "2", "text": "more"} | {
        "prompt": "1+1?"
    }


def test_a_record_with_a_prompt_is_passed_on_as_it_is():
    record = {"prompt": "a", "n": 1}
    assert asked(record).reference is record


@pytest.mark.parametrize(
    ("record", "prompt", "expected"),
    [
        ({"instruction": "Add.", "input": "1 2", "output": "3"}, None, "Add.\n\n1 2"),
        ({"instruction": "Say a.", "input": "", "output": "a"}, None, "Say a."),
        ({"prompt": "no", "title": "yes"}, "title", "yes"),
        ({"a": "1", "b": None, "c": "3"}, "a,b,c", "1\n\n3"),
        ({"task": {"question": {"text": "deep"}}}, "task.question.text", "deep"),
        ({"a.b": "flat", "a": {"b": "deep"}}, "a.b", "flat"),
        ({"prompt": TURNS}, None, TURNS),
        ({"messages": TURNS}, None, TURNS),
        ({"messages": json.dumps(TALK)}, None, TALK),
    ],
)
def test_prompts_of_columns(record, prompt, expected):
    problem = asked(record, prompt)
    assert problem.prompt == expected and problem.reference["prompt"] == expected


def test_the_answer_is_the_column_that_is_chosen():
    record = {"prompt": "a", "reward_model": {"ground_truth": "4"}, "answer": "5"}
    assert asked(record).reference["answer"] == "5"
    chosen = asked(record, answer="reward_model.ground_truth").reference
    assert chosen == record | {"answer": "4"}


def test_the_last_words_of_messages_are_the_answer_and_those_of_a_prompt_are_gone_on_with():
    said = [*TALK, {"role": "assistant", "content": "Ho"}]
    problem = asked({"messages": said})
    assert (problem.prompt, problem.reference["answer"]) == (TALK, "Ho")
    assert asked({"messages": said, "answer": "Hm"}).reference["answer"] == "Hm"
    assert asked({"messages": said, "n": 1}, answer="n").reference["answer"] == 1
    assert asked({"prompt": said}).prompt == said


def test_messages_are_cleaned():
    """Parquet gives every object the fields of all others; parts of text are one text."""
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    call = {"role": "assistant", "content": None, "tool_calls": [CALL | {"id": None}], "name": None}
    result = {"role": "tool", "content": "3", "name": "add", "tool_calls": None}
    record = {"prompt": [{"role": "user", "content": parts}, call, result], "tools": TOOLS}
    problem = asked(record)
    assert problem.prompt == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "3", "name": "add"},
    ]
    assert problem.tools == TOOLS == asked({"prompt": "a", "tools": json.dumps(TOOLS)}).tools
    for other in (None, [], "hammer", ["hammer"], 3):
        assert asked({"prompt": "a", "tools": other}).tools is None


BAD = {
    "nothing": ({"prompt": None}, "record 7 of x has nothing under 'prompt'; expected text or m"),
    "empty": ({"messages": []}, "record 7 of x has nothing under 'messages'"),
    "no text": ({"prompt": ""}, "record 7 of x has nothing under 'prompt'; expected text or m"),
    "no cell": ({"messages": ""}, "record 7 of x has nothing under 'messages'"),
    "neither": ({"instruction": "", "input": None}, "x has nothing under 'instruction,input'"),
    "number": ({"prompt": 3}, "record 7 of x has an int under 'prompt'; expected text or messages"),
    "no object": ({"prompt": ["a"]}, "message 1 of record 7 of x is no object with a role and a"),
    "no role": ({"prompt": [*TALK, {"content": "a"}]}, "message 3 of record 7 of x is no object"),
    "content": ({"prompt": [{"role": "user", "content": 3}]}, "has an int as its content"),
    "picture": (
        {"prompt": [{"role": "user", "content": [{"type": "image"}]}]},
        "message 1 of record 7 of x holds something else than text",
    ),
    "no JSON": ({"messages": "user: hi"}, "the column 'messages' of record 7 of x is not JSON"),
    "two": (
        {"instruction": "a", "input": 3},
        "record 7 of x has an int under 'input'; expected tex",
    ),
    "no column": (
        {"title": "a", "body": "b"},
        r"x has no column that is named as prompts usually are \(prompt, .*; it has title, body$",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_records_without_a_prompt_are_one_line(case):
    record, message = BAD[case]
    with pytest.raises(InputError, match=message):
        asked(record)


def write(path, *records):
    path.write_text("\n".join(map(json.dumps, records)))
    return str(path)


def test_columns_that_are_not_there_are_named(tmp_path):
    data = write(tmp_path / "a.jsonl", {"title": "a", "label": 1}, {"title": "b", "other": 2})
    with pytest.raises(InputError, match="prompt=COLUMN behind the task; it has title, label, oth"):
        function_task(OWN, data=data)
    with pytest.raises(InputError, match=r"a\.jsonl has no column 'titel'; did you mean title\?"):
        function_task(OWN, data=data, prompt="titel")
    with pytest.raises(InputError, match="has no column 'zzz'; it has title, label, other"):
        function_task(OWN, data=data, prompt="title", answer="zzz")
    task = function_task(OWN, data=data, prompt="title", answer="label")
    assert {task.train(0).reference["answer"], task.held_out(0).reference["answer"]} == {1, None}
    assert task.identity["task"].endswith("stop=() prompt=title answer=label")


def test_conversations_are_kept_apart_by_all_that_is_said(tmp_path):
    talks = [{"messages": [{"role": "user", "content": f"{i % 20}"}]} for i in range(40)]
    task = function_task(OWN, data=write(tmp_path / "a.jsonl", *talks))
    said = lambda at, size: {at(i).prompt[0]["content"] for i in range(size)}
    train, held_out = said(task.train, task.train_size), said(task.held_out, task.held_out_size)
    assert len(train) + len(held_out) == 20 and not train & held_out
    assert (task.train_size or 0) + (task.held_out_size or 0) == 40 and len(task.forms) == 1
    with pytest.raises(InputError, match=r"line 1 of .* asks with messages or tools, which need a"):
        function_task(OWN, data=write(tmp_path / "a.jsonl", *talks), style="plain")


def test_text_that_is_no_unicode_is_a_prompt(tmp_path):
    task = function_task(OWN, data=write(tmp_path / "a.jsonl", *({"prompt": c} for c in "\ud800b")))
    assert {task.train(0).prompt, task.held_out(0).prompt} == {"\ud800", "b"}


def test_a_part_named_test_is_held_out(tmp_path):
    for name in ("train", "test"):
        write(tmp_path / f"{name}.jsonl", *({"prompt": f"{name} {i}"} for i in range(9)))
    task = function_task(OWN, data=str(tmp_path))
    assert (task.train_size, task.held_out_size) == (9, 9)
    assert spoken(task.held_out(0).prompt).startswith("test")
    other = write(tmp_path.parent / "other.jsonl", {"prompt": "o"})
    assert function_task(OWN, data=str(tmp_path), held_out_data=other).held_out(0).prompt == "o"
