"""GSM8K: word problems of school mathematics whose answer is one number.

Source: Cobbe et al., "Training Verifiers to Solve Math Word Problems", arXiv 2110.14168. Nothing is
shipped: the data set is a folder with train.jsonl and test.jsonl, or comes from the hub.
"""

import hashlib
import importlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from springroll.errors import InputError
from springroll.hub import reachable
from springroll.program import pip_install
from springroll.tasks.answers import check_style, find_number, instruction
from springroll.tasks.problem import Problem, TextTask, option_line, prompt_style, until_stop
from springroll.tasks.records import Record, file_digest, read_records, shuffled
from springroll.tasks.verdicts import Verdict, check_reward, verdict

HUB = "openai/gsm8k"
FILES = {"train": "train.jsonl", "test": "test.jsonl"}


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
        data: a folder with train.jsonl and test.jsonl, fields `question` and `answer`, or the name
            of the data set on the hub (extra `data`).
        seed: of the order of the training problems.
        style: "instruct", or "plain" for a base model: `Question: ... Answer:`.
        answer: where the answer stands (see `answers.py`).
        reward: "smooth" or "exact".

    Raises:
        InputError: the data cannot be read, or an option is none of these.
    """
    prompt_style(style, answer)
    check_style(answer)
    check_reward(reward)
    sides, digest = _sides(data)
    test_questions = {_question(record) for record in sides["test"]}
    train = [r for r in sides["train"] if _question(r) not in test_questions]
    if not train:
        raise InputError(f"all training problems of {data} are in its test set too")
    make = lambda record: _problem(record, style, answer)
    train_at, held_out_at = shuffled(train, seed), shuffled(sides["test"], 0)
    stop = ("\nQuestion:",) if style == "plain" else ()

    def score(problems: Sequence[Problem], texts: Sequence[str]) -> list[Verdict]:
        return [
            judge(until_stop(text, stop), problem.reference["answer"], answer, reward)
            for problem, text in zip(problems, texts, strict=True)
        ]

    return TextTask(
        name="gsm8k",
        train=lambda index: make(train_at(index)),
        held_out=lambda index: make(held_out_at(index)),
        score=score,
        train_size=len(train),
        held_out_size=len(sides["test"]),
        chat=style == "instruct",
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
    folder = Path(data).expanduser()
    if folder.is_dir():
        paths = {side: folder / name for side, name in FILES.items()}
        sides = {side: read_records(path, "question", "answer") for side, path in paths.items()}
        digest = " ".join(file_digest(path) for path in paths.values())
    elif data == HUB or (data.count("/") == 1 and not data.startswith((".", "/", "~"))):
        sides = {side: _from_hub(data, side) for side in FILES}
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
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise InputError(
            f"the data set {name} needs the package 'datasets': {pip_install('data')}; "
            f"without it, give a folder with {' and '.join(FILES.values())} as data"
        ) from None
    if not reachable():
        raise InputError(
            f"the data set {name} is on huggingface.co, which cannot be reached from here; "
            f"give a folder with {' and '.join(FILES.values())} as data"
        )
    try:
        rows = datasets.load_dataset(name, "main", split=split)
        return [{"question": row["question"], "answer": row["answer"]} for row in rows]
    except Exception as error:  # the package raises whatever its many dependencies raise
        reason = str(error).strip().split("\n")[0][:160] or type(error).__name__
        raise InputError(f"cannot read the data set {name}: {reason}") from None
