"""What a text task is: problems by index, and a judge of the texts that answer them.

    task = text_task("countdown", seed=0)
    problems = [task.train(index) for index in range(8)]
    verdicts = task.score(problems, texts)          # one per text
    rewards = [verdict.reward for verdict in verdicts]

Training and held-out problems are pure functions of (seed, index), so that a resumed run needs no
cursor, and no problem is ever on both sides.
"""

import math
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Problem(NamedTuple):
    """What a model is asked, and what its answer is judged by."""

    prompt: str
    reference: Any  # JSON values


class Verdict(NamedTuple):
    """What one text is worth."""

    reward: float  # NaN: could not be scored
    correct: bool
    formatted: bool  # an answer was found where the task wants it


class Worked(NamedTuple):
    """A generated problem with its solution, to judge by and to make training text of."""

    problem: Problem
    answer: str  # in the shortest form that is judged correct
    steps: tuple[str, ...]  # on the way there, one equation each


UNSCORED = Verdict(math.nan, False, False)


_COUNTING = threading.Lock()


def unscored(
    failures: Counter[str], kind: str, count: int, line: str | None = None
) -> list[Verdict]:
    """Verdicts on `count` texts that could not be scored, counted by kind.

    The first of a kind prints its line to stderr; the others are only counted.
    """
    with _COUNTING:
        if line and not failures[kind]:
            print(line, file=sys.stderr, flush=True)
        failures[kind] += count
    return [UNSCORED] * count


def _nothing() -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class TextTask:
    """Problems and their judge. Made by `text_task`."""

    name: str
    train: Callable[[int], Problem]
    """The training problem of an index, 0 or more. Beyond `train_size` they come again, in another
    order."""
    held_out: Callable[[int], Problem]
    """A problem that is never among the training ones."""
    score: Callable[[Sequence[Problem], Sequence[str]], list[Verdict]]
    """Judge texts (without their prompts), one per problem."""
    worked: Callable[[int], Worked] | None = None
    """Training problems with their solutions, for those that are generated."""
    train_size: int | None = None
    """How many there are; None: endless."""
    held_out_size: int | None = None
    chat: bool = False
    """The prompt is a message, to be put into the model's chat template where it has one."""
    stop: tuple[str, ...] = ()
    """What follows the first of these in a text is not judged, so generation may end there."""
    identity: Mapping[str, str] = field(default_factory=dict)
    """What must be the same when a run goes on: options, digests of files."""
    failures: Counter[str] = field(default_factory=Counter)
    """How many texts could not be scored so far, by kind: "timeout", "crashed", "raised"."""
    close: Callable[[], None] = _nothing
    """Ends the processes of an isolated reward function."""


def until_stop(text: str, stop: Sequence[str]) -> str:
    """What stands before the first of the stop strings.

    >>> until_stop("46\\n12+34=", ("\\n",))
    '46'
    """
    ends = [found for mark in stop if (found := text.find(mark)) >= 0]
    return text[: min(ends)] if ends else text
