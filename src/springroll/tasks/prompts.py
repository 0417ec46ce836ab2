"""The prompt of a record: a column of text or of messages, found by its name.

| column | is |
|---|---|
| text | a question, put into the chat template as a user's message (`style=plain`: as it stands) |
| a list of messages | a conversation so far: system, several turns, calls of tools and results |

Where the last message of a column `prompt` is the assistant's, the model goes on with it. That of a
column `messages` is the answer that the data set has: it is left out, and the reward is given it
as `answer`. A column `tools` holds the descriptions of tools that the template is to show.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from springroll.bounded import parse_json
from springroll.errors import InputError, kind_of, suggestion
from springroll.tasks.problem import Problem
from springroll.tasks.tables import Record, Row

USUAL = ("prompt", "messages", "question", "problem", "instruction,input", "instruction", "input")
USUAL += ("query", "text")  # columns with prompts, the first that there is; "," joins several


def prompt_columns(fields: Iterable[str], chosen: str | None, source: str) -> list[str]:
    """The columns that a prompt is made of: those chosen, else the first of `USUAL`.

    Args:
        fields: of the records.
        chosen: a column, or several with "," between them; `reward_model.question` is a field of
            the objects in a column.
        source: of the records, for messages.

    Raises:
        InputError: there is no such column.
    """
    known = [*fields]
    for columns in [chosen] if chosen else USUAL:
        parts = columns.split(",")
        missing = [part for part in parts if not holds(known, part)]
        if not missing:
            return parts
        if chosen:
            raise no_column(missing[0], known, source)
    raise InputError(
        f"{source} has no column that is named as prompts usually are ({', '.join(USUAL)}); choose "
        f"one with prompt=COLUMN behind the task; it has {', '.join(known)}"
    )


def no_column(name: str, fields: Sequence[str], source: str) -> InputError:
    """What is said of a column that is not there."""
    hint = suggestion(name, fields, otherwise=f"it has {', '.join(fields)}")
    return InputError(f"{source} has no column {name!r}{hint}")


def holds(fields: Sequence[str], column: str) -> bool:
    """Whether a column, or the object that a column such as `a.b` looks into, is there."""
    return column in fields or column.partition(".")[0] in fields


def value_of(record: Record, column: str) -> Any:
    """The value in a column; `a.b` is field b of the object in column a. None where there is none.

    >>> value_of({"reward_model": {"ground_truth": "4"}}, "reward_model.ground_truth")
    '4'
    """
    if column in record or "." not in column:
        return record.get(column)
    first, _, rest = column.partition(".")
    inside = record.get(first)
    return value_of(inside, rest) if isinstance(inside, dict) else None


def problem_of(row: Row, columns: Sequence[str], answer: str | None = None) -> Problem:
    """The problem that a record asks.

    Its reference is the record with `prompt` as the model is asked, and `answer` where one was
    chosen or taken from the messages.

    Args:
        columns: of the prompt, see `prompt_columns`.
        answer: the column of the right answer; None: the record as it is.

    Raises:
        InputError: the prompt is neither text nor messages.
    """
    where, record = row
    more: Record = {} if answer is None else {"answer": value_of(record, answer)}
    prompt = joined(row, columns) if len(columns) > 1 else value_of(record, columns[0])
    if isinstance(prompt, str) and prompt and columns == ["messages"]:  # as CSV holds them
        prompt = parse_json(prompt, f"the column 'messages' of {where}")
    if not isinstance(prompt, str) or not prompt:
        prompt = messages_of(prompt, where, ",".join(columns))
        if columns == ["messages"] and len(prompt) > 1 and prompt[-1]["role"] == "assistant":
            *prompt, last = prompt
            more = (
                {"answer": last["content"]}
                | ({"answer": record["answer"]} if "answer" in record else {})
                | more
            )
    if record.get("prompt") != prompt:
        more["prompt"] = prompt
    return Problem(prompt, record | more if more else record, tools_of(record, where), where)


def joined(row: Row, columns: Sequence[str]) -> str:
    """The texts of several columns, with an empty line between them."""
    texts = [value_of(row.record, column) or "" for column in columns]
    for column, text in zip(columns, texts, strict=True):
        if not isinstance(text, str):
            raise InputError(f"{row.where} has {kind_of(text)} under {column!r}; expected text")
    return "\n\n".join(filter(None, texts))


def messages_of(value: object, where: str, column: str) -> list[dict[str, Any]]:
    """A list of messages from a file, each with a role and its content as text.

    Raises:
        InputError: it is none.
    """
    if not isinstance(value, list) or not value:
        said = "nothing" if value in (None, "", []) else kind_of(value)
        raise InputError(f"{where} has {said} under {column!r}; expected text or messages")
    return [_message(each, f"message {i} of {where}") for i, each in enumerate(value, 1)]


def _message(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        raise InputError(f"{where} is no object with a role and a content")
    content = value.get("content")
    if isinstance(content, list):
        if not all(
            isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
        ):
            raise InputError(f"{where} holds something else than text")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str | None):
        raise InputError(f"{where} has {kind_of(content)} as its content; expected text")
    others = {name: said for name, said in value.items() if name != "content"}
    return {"role": value["role"], "content": content or ""} | _said(others)


def tools_of(record: Record, where: str) -> list[Any] | None:
    """The descriptions of tools: a list of objects, or JSON text of one."""
    tools = record.get("tools")
    if isinstance(tools, str) and tools.lstrip().startswith("["):
        tools = parse_json(tools, f"the column 'tools' of {where}")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        return None  # some other column of this name
    return _said(tools) or None


def _said(value: Any) -> Any:
    """Without the fields that are None: parquet files give each object the fields of all others."""
    if isinstance(value, dict):
        return {name: _said(each) for name, each in value.items() if each is not None}
    return [_said(each) for each in value] if isinstance(value, list) else value
