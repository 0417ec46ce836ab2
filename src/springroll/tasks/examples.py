"""What a model is to answer, from records: chats, prompts with their answers, and plain text.

| columns | a record is |
|---|---|
| `messages`, `conversations` | a chat: every message of the assistant's is an answer |
| one of `PROMPTS` and one of `ANSWERS` | a prompt and its answer, texts or lists of messages |
| `text` | a text, all of which is learnt |

The first row of the table that fits the columns of a record counts; a record that fits none has no
answer. A message with `"weight": 0` is no answer;
neither is one that no user's message goes before. A column `tools` holds descriptions of tools that
the chat template is to show, `system` or `system_prompt` the system's message before a prompt.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from springroll.bounded import parse_json
from springroll.errors import InputError, brief, kind_of
from springroll.tasks.corpus import is_held_out
from springroll.tasks.data_set import read_data
from springroll.tasks.prompts import holds, joined, messages_of, no_column, tools_of, value_of
from springroll.tasks.tables import Row
from springroll.tokens.chat_template import Messages

CHATS = ("messages", "conversations", "conversation")
PROMPTS = ("prompt", "question", "problem", "instruction,input", "instruction", "input", "query")
ANSWERS = ("completion", "response", "answer", "output", "solution")
TEXTS = ("text", "content")
SYSTEMS = ("system", "system_prompt")
SAID_BY = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}


class Example(NamedTuple):
    """What is said, and which of it is learnt.

    A chat has messages and the numbers of its answers; else `prompt` and `answer` are texts, of
    which the prompt is empty where all is learnt.
    """

    where: str
    messages: Messages | None
    answers: tuple[int, ...]
    tools: list[Any] | None = None
    prompt: str = ""
    answer: str = ""

    @property
    def key(self) -> str:
        """What makes two examples ask the same."""
        if self.messages is None:
            return self.prompt or self.answer
        asked = self.messages[: self.answers[0]] if self.answers else self.messages
        return json.dumps([asked, self.tools], sort_keys=True)


class Examples(NamedTuple):
    """The examples for training, and after them those of the held-out part, if there is one."""

    all: list[Example]
    training: int  # how many are for training
    digest: str


class Columns(NamedTuple):
    """Where a record holds what: a chat, or prompt and answer, or all in `answer`."""

    chat: str | None = None
    prompt: tuple[str, ...] = ()
    answer: str = ""
    system: str | None = None


def read_examples(
    source: str, prompt: str | None = None, answer: str | None = None, *, chat: bool = True
) -> Examples:
    """The examples of a file, a folder or a data set of the hub (see `read_data`).

    Args:
        prompt, answer: columns; by default they are found by their names.
        chat: whether prompts become messages, for a model with a chat template.

    Raises:
        InputError: it cannot be read, has no such columns, a record is something else, or a chat
            where there is no template.
    """
    found = read_data(source)
    rows = [*found.train, *found.held_out]
    fields = dict.fromkeys(field for row in rows for field in row.record)
    usual = columns_of(fields, source, prompt, answer)
    kind = functools.cache(lambda held: fitting(held, prompt, answer) or usual)
    examples = [example_of(row, kind(tuple(row.record)), chat) for row in rows]
    talk = next((each for each in examples if each.messages is not None), None)
    if talk is not None and not chat:
        raise InputError(
            f"{talk.where} is a chat, and the model has no chat template; take a model that has "
            "one, or prompts and answers as texts"
        )
    return Examples(examples, len(found.train), found.digest)


class Sides(NamedTuple):
    """Numbers of examples, no prompt on both sides."""

    train: list[int]
    held_out: list[int]


def sides(found: Examples, usable: Sequence[int]) -> Sides:
    """The two sides of a data set.

    Where it has no held-out part, a twentieth of the prompts is held out, by their hashes, and at
    least one.

    Args:
        found: see `read_examples`.
        usable: numbers of the examples that can be learnt from, ascending.

    Raises:
        InputError: a side is empty.
    """
    keys = {i: found.all[i].key for i in usable}
    if found.training < len(found.all):
        held_out = [i for i in usable if i >= found.training]
    else:
        digest = lambda key: hashlib.sha256(key.encode(errors="surrogatepass")).digest()
        held_out = [i for i in usable if is_held_out(digest(keys[i]))]
        held_out = held_out or [i for i in usable if keys[i] == keys[usable[-1]]]
    apart = {keys[i] for i in held_out}
    train = [i for i in usable if i < found.training and keys[i] not in apart]
    if not held_out:
        raise InputError("no held-out record can be learnt from")
    if not train:
        raise InputError(
            "no record for training can be learnt from whose prompt is not held out as well; give "
            "more records, with different prompts"
        )
    return Sides(train, held_out)


def columns_of(
    fields: Iterable[str], source: str, prompt: str | None = None, answer: str | None = None
) -> Columns:
    """Which columns are read.

    Raises:
        InputError: no columns have such names, or the chosen ones are not there.
    """
    known = [*fields]
    for chosen in filter(None, (prompt, answer)):
        lost = [part for part in chosen.split(",") if not holds(known, part)]
        if lost:
            raise no_column(lost[0], known, source)
    found = fitting(known, prompt, answer)
    if found is not None:
        return found
    raise InputError(
        f"{source} has the columns {', '.join(known)}; expected chats ({', '.join(CHATS)}), a "
        f"prompt ({', '.join(PROMPTS)}) with an answer ({', '.join(ANSWERS)}), or text; name them "
        "by --prompt-column and --answer-column, or learn the file as it stands by --format text"
    )


def fitting(
    known: Sequence[str], prompt: str | None = None, answer: str | None = None
) -> Columns | None:
    """The same of a record with these columns; None where it has none to learn from."""
    chat = next((name for name in CHATS if name in known), None)
    if chat and not (prompt or answer):
        return Columns(chat=chat)
    system = next((name for name in SYSTEMS if name in known), None)
    there = lambda column: all(holds(known, part) for part in column.split(","))
    asks = prompt or next((name for name in PROMPTS if there(name) and name != answer), None)
    says = answer or next((name for name in ANSWERS if there(name) and name != asks), None)
    if asks and says:
        return Columns(prompt=tuple(asks.split(",")), answer=says, system=system)
    text = next((name for name in TEXTS if name in known), None)
    return Columns(answer=text) if text and not (prompt or answer) else None


def example_of(row: Row, columns: Columns, chat: bool = True) -> Example:
    """The example of a record; one without an answer has none.

    Raises:
        InputError: a column holds something else than text or messages.
    """
    if columns.chat:
        messages = _chat(value_of(row.record, columns.chat), row.where, columns.chat)
        return _conversation(row, messages, 0)
    if not columns.prompt:
        text = _said(row, (columns.answer,))
        if not isinstance(text, str):
            raise InputError(f"{row.where} has messages under {columns.answer!r}; expected text")
        return Example(row.where, None, (), answer=text)
    prompt, answer = _said(row, columns.prompt), _said(row, (columns.answer,))
    if isinstance(prompt, str) and isinstance(answer, str) and not chat:
        return Example(row.where, None, (), prompt=prompt, answer=answer)
    system = _said(row, (columns.system,)) if columns.system and isinstance(prompt, str) else ""
    before = [*_turns("system", system), *_turns("user", prompt)]
    return _conversation(row, [*before, *_turns("assistant", answer)], len(before))


def _chat(value: object, where: str, column: str) -> list[dict[str, Any]]:
    """The messages of a chat; those of ShareGPT have `from` and `value`."""
    if isinstance(value, str):  # as CSV holds them
        value = parse_json(value, f"the column {column!r} of {where}")
    if value is None or value == []:
        return []
    if isinstance(value, list) and all(isinstance(m, dict) and "from" in m for m in value):
        value = [
            {"role": SAID_BY.get(str(m["from"]), str(m["from"])), "content": m.get("value")}
            for m in value
        ]
    return messages_of(value, where, column)


def _said(row: Row, columns: Sequence[str]) -> str | list[dict[str, Any]]:
    """What stands in a column: text, or messages."""
    if len(columns) > 1:
        return joined(row, columns)
    value = value_of(row.record, columns[0])
    if value is None or value == []:  # no messages are no text
        return ""
    if isinstance(value, list):
        return messages_of(value, row.where, columns[0])
    if not isinstance(value, str):
        raise InputError(
            f"{row.where} has {kind_of(value)} under {columns[0]!r}; expected text or messages"
        )
    return value


def _turns(role: str, said: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same as messages."""
    if isinstance(said, list):
        return said
    return [{"role": role, "content": said}] if said.strip() else []


def _conversation(row: Row, messages: list[dict[str, Any]], first: int) -> Example:
    """A chat, of which messages from number `first` on may be answers."""
    for number, message in enumerate(messages, 1):
        if message.get("weight", 1) not in (0, 1):
            raise InputError(
                f"message {number} of {row.where} has the weight {brief(message['weight'])}; "
                "expected 0 or 1"
            )
    asked = next((i for i, m in enumerate(messages) if m["role"] == "user"), len(messages))
    answers = tuple(
        i
        for i, m in enumerate(messages)
        if i > asked and i >= first and m["role"] == "assistant" and m.get("weight") != 0
        if m["content"].strip() or m.get("tool_calls")
    )
    said = [{name: value for name, value in m.items() if name != "weight"} for m in messages]
    return Example(row.where, said, answers, tools_of(row.record, row.where))
