"""The figures of a batch of answers that are only honest together.

A model can gain accuracy by finishing within the limit, and reward by format alone; so whoever sees
one of these figures sees all of them.
"""

import math
from collections.abc import Sequence
from typing import Any

from springroll.tasks.problem import Verdict


def report(
    verdicts: Sequence[Verdict], lengths: Sequence[int], truncated: Sequence[bool]
) -> dict[str, Any]:
    """Accuracy and what it must be read with.

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
        raise ValueError(
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
