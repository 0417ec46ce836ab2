"""Chats, prompts with answers, and texts from records of other people's forms."""

import json

import pytest

from springroll.errors import InputError
from springroll.tasks.examples import columns_of, example_of, read_examples, sides
from springroll.tasks.tables import Row

USER, SAID = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be kind"}


def example(record, chat=True, **columns):
    row = Row("line 1 of x", record)
    return example_of(row, columns_of(record, "x", **columns), chat)


@pytest.mark.parametrize(
    ("record", "messages", "answers"),
    [
        ({"messages": [SYSTEM, USER, SAID, USER, SAID]}, [SYSTEM, USER, SAID, USER, SAID], (2, 4)),
        ({"messages": json.dumps([USER, SAID])}, [USER, SAID], (1,)),
        ({"messages": [USER, SAID], "prompt": "x"}, [USER, SAID], (1,)),
        ({"messages": [SAID, USER, SAID]}, [SAID, USER, SAID], (2,)),  # a greeting is no answer
        ({"messages": [USER, SAID | {"weight": 0}, USER, SAID]}, [USER, SAID, USER, SAID], (3,)),
        ({"messages": [USER, SAID | {"content": " "}]}, [USER, SAID | {"content": " "}], ()),
        ({"messages": [USER]}, [USER], ()),
        ({"messages": None}, [], ()),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Hi"},
                    {"from": "gpt", "value": "Hello"},
                ]
            },
            [USER, SAID],
            (1,),
        ),
        ({"prompt": "Hi", "completion": "Hello"}, [USER, SAID], (1,)),
        ({"question": "Hi", "answer": "Hello", "id": 3}, [USER, SAID], (1,)),
        ({"instruction": "Hi", "input": "", "output": "Hello"}, [USER, SAID], (1,)),
        ({"system": "Be kind", "query": "Hi", "response": "Hello"}, [SYSTEM, USER, SAID], (2,)),
        ({"prompt": [SYSTEM, USER], "completion": [SAID]}, [SYSTEM, USER, SAID], (2,)),
        ({"prompt": [USER, SAID, USER], "completion": "Hello"}, [USER, SAID, USER, SAID], (3,)),
        ({"prompt": "Hi", "completion": ""}, [USER], ()),
        ({"prompt": "Hi", "completion": None}, [USER], ()),
        ({"prompt": "Hi", "completion": []}, [USER], ()),
    ],
)
def test_forms_of_records(record, messages, answers):
    found = example(record)
    assert (found.messages, found.answers) == (messages, answers)


def test_two_texts_of_a_prompt_have_a_line_between():
    found = example({"instruction": "Add", "input": "1, 2", "output": "3"})
    assert found.messages is not None and found.messages[0]["content"] == "Add\n\n1, 2"


def test_a_call_of_a_tool_is_an_answer():
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    tools = [{"name": "f"}]
    found = example({"messages": [USER, call], "tools": json.dumps(tools)})
    assert found.answers == (1,) and found.tools == tools


def test_without_a_template_texts_stay_texts():
    found = example({"prompt": "1+1=", "completion": "2"}, chat=False)
    assert (found.messages, found.prompt, found.answer) == (None, "1+1=", "2")
    assert example({"prompt": [USER], "completion": "2"}, chat=False).messages is not None
    found = example({"text": "all of it", "url": "x"}, chat=False)
    assert (found.prompt, found.answer) == ("", "all of it")


def test_chosen_columns_come_first():
    record = {"messages": [USER], "ask": {"text": "Hi"}, "reply": "Hello", "answer": "No"}
    found = example(record, prompt="ask.text", answer="reply")
    assert found.messages == [USER, SAID]
    assert example({"ask": "Hi", "answer": "Hello"}, prompt="ask").messages == [USER, SAID]


@pytest.mark.parametrize(
    ("record", "columns", "message"),
    [
        ({"id": 1, "score": 2}, {}, r"x has the columns id, score; expected chats .*--format text"),
        ({"prompt": "a", "score": 2}, {}, "has the columns prompt, score; expected"),
        (
            {"prompt": "a", "answer": "b"},
            {"answer": "anser"},
            "no column 'anser'; did you mean ans",
        ),
        ({"prompt": 3, "answer": "b"}, {}, "line 1 of x has an int under 'prompt'; expected text"),
        ({"prompt": "a", "answer": 4.5}, {}, "has a float under 'answer'; expected text or mess"),
        ({"messages": [{"role": "user"}, 3]}, {}, "message 2 of line 1 of x is no object with"),
        ({"messages": {"a": 1}}, {}, "has a dict under 'messages'"),
        ({"text": [USER]}, {}, "has messages under 'text'; expected text"),
        ({"messages": "[{"}, {}, "the column 'messages' of line 1 of x"),
        (
            {"messages": [USER, SAID | {"weight": 0.5}]},
            {},
            "message 2 of line 1 of x has the weight 0.5; expected 0 or 1",
        ),
    ],
)
def test_other_records_are_named(record, columns, message):
    with pytest.raises(InputError, match=message):
        example(record, **columns)


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_records_of_several_kinds_may_lie_in_one_file(tmp_path):
    rows = [{"messages": [USER, SAID]}, {"prompt": "Hi", "answer": "Hello"}, {"text": "all"}]
    found = read_examples(write(tmp_path / "x.jsonl", [*rows, {"prompt": "Hi"}])).all
    assert [(each.messages, each.answers, each.answer) for each in found] == [
        ([USER, SAID], (1,), ""),
        ([USER, SAID], (1,), ""),
        (None, (), "all"),
        ([], (), ""),
    ]


def prompts(found, numbers):
    return [found.all[i].messages[0]["content"] for i in numbers]


def test_prompts_are_on_one_side(tmp_path):
    rows = [{"prompt": f"p{i % 300}", "completion": str(i)} for i in range(600)]
    found = read_examples(write(tmp_path / "x.jsonl", rows))
    train, held_out = sides(found, range(600))
    assert len(train) + len(held_out) == 600 and 10 < len(held_out) < 60
    assert not {*prompts(found, train)} & {*prompts(found, held_out)}
    some = sides(found, [*range(50), *train[50:60]])  # the others cannot be learnt from
    assert {*some.train} <= {*train} and some.held_out


def test_a_file_of_its_own_is_held_out(tmp_path):
    write(tmp_path / "train.jsonl", [{"prompt": p, "completion": "x"} for p in "abc"])
    write(tmp_path / "test.jsonl", [{"prompt": p, "completion": "y"} for p in "cd"])
    found = read_examples(str(tmp_path))
    assert found.training == 3
    train, held_out = sides(found, range(5))
    assert (prompts(found, train), prompts(found, held_out)) == (["a", "b"], ["c", "d"])
    with pytest.raises(InputError, match="no held-out record can be learnt from"):
        sides(found, range(3))


def test_one_prompt_cannot_be_divided(tmp_path):
    path = write(tmp_path / "x.jsonl", [{"prompt": "a", "completion": str(i)} for i in range(9)])
    with pytest.raises(InputError, match="whose prompt is not held out as well; give more"):
        sides(read_examples(path), range(9))


def test_a_chat_needs_a_template(tmp_path):
    path = write(tmp_path / "x.jsonl", [{"messages": [USER, SAID]}])
    with pytest.raises(InputError, match=r"line 1 of .* is a chat, and the model has no chat temp"):
        read_examples(path, chat=False)
