"""GSM8K: word problems of school mathematics whose answer is one number.

Source: Cobbe et al., "Training Verifiers to Solve Math Word Problems", arXiv 2110.14168. Nothing is
shipped: the data set is a folder with train.jsonl and test.jsonl, or comes from the hub.
"""

import hashlib
import os
from fractions import Fraction
from pathlib import Path

from springroll.errors import InputError
from springroll.hub import data_set
from springroll.tasks.answers import find_number, instruction
from springroll.tasks.data_set import read_data
from springroll.tasks.problem import Problem, TextTask, answer_style, judged, option_line
from springroll.tasks.records import file_digest, read_records, records_with, shuffled
from springroll.tasks.tables import Record
from springroll.tasks.verdicts import Verdict, verdict
from springroll.typed_call import typed_call

HUB = "openai/gsm8k"
FILES = {"train": "train.jsonl", "test": "test.jsonl"}


@typed_call
def gsm8k_task(
    *,
    data: str = HUB,
    seed: int = 0,
    style: str = "instruct",
    answer: str = "hash",
    reward: str = "smooth",
) -> TextTask:
    """The training problems, and those of the test set as held-out ones.

    A reward is smooth here in that a wrong number in the right place earns 0.1.

    Args:
        data: a folder with train.jsonl and test.jsonl, fields `question` and `answer`, or with
            files of another kind and such names (see `read_data`); or the name of the data set on
            the hub (extra `data`), also as hub:OWNER/NAME.
        seed: of the order of the training problems.
        style: "instruct", or "plain" for a base model: `Question: ... Answer:`.
        answer: where the answer stands (see `answers.py`).
        reward: "smooth" or "exact".

    Raises:
        InputError: the data cannot be read, or an option is none of these.
    """
    answer_style(style, answer, reward)
    sides, digest = _sides(data)
    test_questions = {_question(record) for record in sides["test"]}
    train = [r for r in sides["train"] if _question(r) not in test_questions]
    if not train:
        raise InputError(f"all training problems of {data} are in its test set too")
    make = lambda record: _problem(record, style, answer)
    train_at, held_out_at = shuffled(train, seed), shuffled(sides["test"], 0)
    stop = ("\nQuestion:",) if style == "plain" else ()
    return TextTask(
        name="gsm8k",
        train=lambda index: make(train_at(index)),
        held_out=lambda index: make(held_out_at(index)),
        score=judged(
            lambda text, reference: judge(text, reference["answer"], answer, reward), stop
        ),
        train_size=len(train),
        held_out_size=len(sides["test"]),
        chat=style == "instruct",
        answer_tokens=400,  # the solutions of the data set have 100 on average, models write more
        stop=stop,
        identity={
            "task": option_line("gsm8k", seed=seed, style=style, answer=answer, reward=reward),
            "data": digest,
        },
    )


def judge(text: str, expected: str, answer: str, reward: str) -> Verdict:
    """The verdict on one text."""
    number = find_number(text, answer)
    correct = number == Fraction(expected)
    return verdict(reward, formatted=number is not None, partial=float(correct), correct=correct)


def _problem(record: Record, style: str, answer: str) -> Problem:
    prompt = f"Question: {record['question']}\nAnswer:"
    if style == "instruct":
        prompt = f"{record['question']}\n\nThink step by step. {instruction(answer, 'number')}"
    return Problem(prompt, {"question": record["question"], "answer": record["number"]})


def _question(record: Record) -> str:
    return " ".join(record["question"].split())


def _sides(data: str) -> tuple[dict[str, list[Record]], str]:
    """Records by side, each with its number, and a digest of the data."""
    folder = Path(os.path.expanduser(data))
    paths = {side: folder / name for side, name in FILES.items()}
    if os.path.exists(folder) and not any(path.exists() for path in paths.values()):
        found = read_data(data)
        if not found.held_out:
            raise InputError(
                f"{data} holds no test set: no file whose name begins with test; give a folder "
                f"with {' and '.join(FILES.values())}"
            )
        digest = found.digest
        rows = {"train": found.train, "test": found.held_out}
        sides = {side: records_with(rows[side], "question", "answer") for side in rows}
    elif os.path.isdir(folder):
        sides = {side: read_records(path, "question", "answer") for side, path in paths.items()}
        digest = " ".join(file_digest(path) for path in paths.values())
    elif data == HUB or (data.count("/") == 1 and not data.startswith((".", "/", "~"))):
        sides = {side: _from_hub(data.removeprefix("hub:"), side) for side in FILES}
        digest = hashlib.sha256(repr(sides).encode()).hexdigest()[:16]
    else:
        raise InputError(f"no folder {data}; give one with {' and '.join(FILES.values())}")
    return {side: [_numbered(r, data) for r in records] for side, records in sides.items()}, digest


def _numbered(record: Record, data: str) -> Record:
    number = find_number(record["answer"], "hash")
    if number is None:
        raise InputError(
            f"an answer in {data} has no number after ####: {record['answer'][-60:]!r}"
        )
    return record | {"number": str(number)}


def _from_hub(name: str, split: str) -> list[Record]:
    instead = f"give a folder with {' and '.join(FILES.values())} as data"
    rows = list(data_set(name, "main", instead, split=split))
    if not all("question" in row and "answer" in row for row in rows):
        raise InputError(f"the data set {name} lacks question or answer in a row; {instead}")
    return [{"question": row["question"], "answer": row["answer"]} for row in rows]
