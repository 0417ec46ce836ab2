"""What judged answers are worth, and the figures of a batch of them.

A reward is exactly right or nothing, or smooth, with credit for what comes close. Evolution sees
differences between members only, and a small or untrained model answers nothing right: the smooth
reward tells its members apart all the same.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from springroll.errors import InputError
from springroll.typed_call import typed_call

FORMAT, PARTIAL, CORRECT = 0.1, 0.4, 0.5  # the shares of the smooth reward; together 1
REWARDS = ("smooth", "exact")


class Verdict(NamedTuple):
    """What one text is worth."""

    reward: float  # NaN: could not be scored
    correct: bool
    formatted: bool  # an answer was found where the task wants it
    parts: tuple[float, ...] = ()  # of a sum of rewards each, NaN where one does not apply


UNSCORED = Verdict(math.nan, False, False)


def verdict(kind: str, *, formatted: bool, partial: float, correct: bool) -> Verdict:
    """The verdict on an answer.

    smooth: 0.1 formatted + 0.4 partial + 0.5 correct; exact: 1 when correct, else 0.

    Args:
        kind: "smooth" or "exact".
        partial: in 0 .. 1, the task's own measure of how close it comes; 1 only when correct.
    """
    smooth = FORMAT * formatted + PARTIAL * partial + CORRECT * correct
    reward = 1.0 if correct else smooth if kind == "smooth" else 0.0
    return Verdict(reward, correct, formatted)


def check_reward(kind: str) -> None:
    if kind not in REWARDS:
        raise InputError(f"the reward is {kind!r}; expected one of {', '.join(REWARDS)}")


@typed_call
def report(
    verdicts: Sequence[Verdict], lengths: Sequence[int], truncated: Sequence[bool]
) -> dict[str, float]:
    """Accuracy, and the figures that it must be read with.

    A model can gain accuracy by finishing within the limit, and reward by format alone; so whoever
    sees one of these figures sees all of them.

    Args:
        verdicts: on n texts.
        lengths: of the texts in tokens, (n,).
        truncated: whether each was cut off at the limit, (n,).

    Returns:
        accuracy, format_rate, truncation_rate: shares of all texts, 0 .. 1; a text that could not
        be scored counts as wrong. mean_length in tokens. reward: the mean over the texts that were
        scored, NaN if none was. unscored: how many were not. All are NaN, and unscored 0, of no
        texts.
    """
    if not len(verdicts) == len(lengths) == len(truncated):
        raise InputError(
            f"{len(verdicts)} verdicts, {len(lengths)} lengths, {len(truncated)} truncated"
        )
    rewards = [v.reward for v in verdicts if math.isfinite(v.reward)]
    return {
        "accuracy": _mean([v.correct for v in verdicts]),
        "format_rate": _mean([v.formatted for v in verdicts]),
        "truncation_rate": _mean([bool(t) for t in truncated]),
        "mean_length": _mean([int(n) for n in lengths]),
        "reward": _mean(rewards),
        "unscored": len(verdicts) - len(rewards),
    }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
