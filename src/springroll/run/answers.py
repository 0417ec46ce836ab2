"""What a model wrote at validations: some of its answers, in answers.jsonl. Imports no JAX.

    {"generation": 10, "place": "best", "prompt": "1+2=", "answer": "3", "reward": 1.0,
     "correct": true, "truncated": false, "reference": {"task": "1+2", "answer": "3"}}

The file holds the answers of generations that may become the best, which are fixed ones, and those
of the newest validation. So it does not depend on the clock: a resumed run ends with the same bytes
as one that was never interrupted, and the file grows with the logarithm of the generations.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from springroll.atomic import JsonObject, json_lines, replacing
from springroll.errors import one_line
from springroll.run.clocks import Clock

SHOWN = 3  # answers of a validation: the best, the median and the worst
LONGEST = 1000  # characters that are kept of a prompt, an answer or a reference
GLANCE = 44  # characters of a prompt and of an answer on the console
MARKS = {"correct": "right", "truncated": "cut off"}


class Answer(NamedTuple):
    """An answer to a problem, and what it is worth."""

    prompt: str
    answer: str
    reward: float  # NaN: it could not be scored
    correct: bool
    truncated: bool  # it reached the limit of tokens
    reference: Any = None  # what it was judged by, as JSON has it


def spread(rewards: Sequence[float], count: int) -> dict[int, str]:
    """Some places of a list, from the best reward to the worst, evenly spread, and what they are.

    >>> spread([0.1, 1.0, 0.0, 0.5, 0.2], 3)
    {1: 'best', 4: 'median', 2: 'worst'}

    Args:
        rewards: One or more; NaN is the worst. Of equal ones the first is the better.
        count: How many, at most.
    """
    worth = lambda i: rewards[i] if math.isfinite(rewards[i]) else -math.inf
    order = sorted(range(len(rewards)), key=lambda i: (-worth(i), i))
    count, last = min(count, len(order)), len(order) - 1
    ranks = [round(k * last / max(1, count - 1)) for k in range(count)]
    names = {0: "best", last: "worst"} if last else {0: "best"}
    if count % 2 and count > 1:
        names[ranks[count // 2]] = "median"
    return {order[rank]: names.get(rank, f"{rank + 1} of {len(order)}") for rank in ranks}


def answer_row(place: str, answer: Answer) -> JsonObject:
    """An answer as a JSON object; texts that are too long are cut, and say so."""
    prompt, text, reward, correct, truncated, reference = answer
    return {
        "place": place,
        "prompt": _cut(prompt),
        "answer": _cut(text),
        "reward": reward if math.isfinite(reward) else None,
        "correct": correct,
        "truncated": truncated,
        **({} if reference is None else {"reference": _short(reference)}),
    }


def answer_lines(rows: Sequence[JsonObject], most: int = GLANCE) -> list[str]:
    """One line for every row of `answer_row`, safe on a terminal.

    Args:
        rows: from `answer_row`.
        most: Characters of a prompt, and of an answer.
    """

    def columns(row: JsonObject) -> tuple[str, str, str]:
        reward = "not scored" if row["reward"] is None else f"{row['reward']:.3g}"
        marks = ", ".join(word for name, word in MARKS.items() if row[name])
        return row["place"], reward, marks

    table = [columns(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    aligned = [
        "  ".join(text.ljust(width) for text, width in zip(each, widths, strict=True))
        for each in table
    ]
    return [
        f"{start}  '{one_line(row['prompt'], most)}' -> '{one_line(row['answer'], most)}'"
        for start, row in zip(aligned, rows, strict=True)
    ]


class Answers:
    """The file `answers.jsonl` of a run, replaced whole at every validation; and what is shown.

    Args:
        path: Of the file, which may be missing; lines that are no answers are left out.
        lasting: Whether the answers of a generation stay when later ones come.
        say: Prints a block of lines.
        clock: When they are to be shown again.

    Raises:
        InputError: The file cannot be read.
    """

    def __init__(
        self,
        path: Path,
        lasting: Callable[[int], bool],
        say: Callable[[str], None],
        clock: Clock,
    ):
        self._path, self._lasting, self._say, self._clock = path, lasting, say, clock
        rows = json_lines(path)
        self._rows = [row for row in rows if type(row.get("generation")) is int]
        self._unseen = ""  # the newest block, if it was not shown

    def begin(self, after: int) -> None:
        """Drop what is later than the generation that the run goes on from."""
        self._replace([row for row in self._rows if row["generation"] <= after])

    def keep(self, generation: int, rows: Sequence[JsonObject], title: str) -> None:
        """Add the answers of a generation, and show them at the first one, and when it is time.

        Raises:
            OSError: The file cannot be written.
        """
        if not rows:
            return
        before = (row for row in self._rows if row["generation"] < generation)
        stay = [row for row in before if self._lasting(row["generation"])]
        self._replace([*stay, *({"generation": generation, **row} for row in rows)])
        self._unseen = "\n  ".join([title, *answer_lines(rows)])
        if not generation or self._clock.due():
            self.show()

    def show(self) -> None:
        """Show the newest, if they were not."""
        if self._unseen:
            with self._clock.spending():
                self._say(self._unseen)
                self._unseen = ""

    def _replace(self, rows: list[JsonObject]) -> None:
        if rows != self._rows:
            with replacing(self._path) as file:
                file.writelines((json.dumps(row) + "\n").encode() for row in rows)
            self._rows = rows


def _cut(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]}... (cut after {LONGEST:,} of {len(text):,} characters)"


def _short(reference: Any) -> Any:
    """A value as JSON has it, or, where its text is too long, the beginning of that."""
    text = json.dumps(reference, default=str, skipkeys=True)
    if len(text) > LONGEST:
        return _cut(reference if isinstance(reference, str) else text)
    return json.loads(text, parse_constant=lambda name: None)  # NaN is no JSON
