"""What models wrote, judged: tokens to texts to rewards, and the figures that describe them."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from springroll.generate.generator import Generated
from springroll.tasks.problem import Problem, TextTask, until_stop
from springroll.tasks.verdicts import Verdict, report
from springroll.tokens.tokenizer import Tokenizer


class Judged(NamedTuple):
    """Verdicts on the answers of N members to P prompts; each array (N, P)."""

    reward: np.ndarray  # float32, NaN where it could not be scored
    correct: np.ndarray  # bool
    formatted: np.ndarray  # bool
    truncated: np.ndarray  # bool
    length: np.ndarray  # int32, tokens
    parts: Mapping[str, np.ndarray]  # of a sum of rewards each by name, NaN where it did not apply

    def figures(self, prefix: str = "") -> dict[str, float]:
        """See `report`: accuracy never stands alone."""
        flat = [x.reshape(-1).tolist() for x in self[:5]]
        verdicts = list(map(Verdict, *flat[:3]))
        found = report(verdicts, flat[4], flat[3])
        found |= {f"reward_{name}": mean_of_finite(part) for name, part in self.parts.items()}
        return {f"{prefix}{name}": value for name, value in found.items()}


def judged(
    task: TextTask, tokenizer: Tokenizer, problems: Sequence[Problem], generated: Generated
) -> Judged:
    """Judge what was generated; `problems` are those of the P prompts.

    Equal answers to a prompt are judged once: most of a population agrees.
    """
    members, prompts, width = generated.tokens.shape
    kept = np.arange(width) < generated.lengths[..., None]
    answers = np.where(kept, generated.tokens, -1).reshape(-1, width)
    prompt = np.tile(np.arange(prompts, dtype=np.int32), members)
    keyed = np.column_stack([prompt, answers])
    rows, where = np.unique(keyed, axis=0, return_inverse=True)
    texts = [text_of(task, tokenizer, row[1:][row[1:] >= 0].tolist()) for row in rows]
    verdicts = task.score([problems[p] for p in rows[:, 0]], texts)
    ended = np.array([stopped(task, tokenizer, row[1:][row[1:] >= 0].tolist()) for row in rows])
    spread = lambda values: np.asarray(values)[where.reshape(-1)].reshape(members, prompts)
    return Judged(
        reward=spread([verdict.reward for verdict in verdicts]).astype(np.float32),
        correct=spread([verdict.correct for verdict in verdicts]),
        formatted=spread([verdict.formatted for verdict in verdicts]),
        truncated=~generated.finished & ~spread(ended),
        length=generated.lengths,
        parts={
            name: spread([v.parts[i] if v.parts else math.nan for v in verdicts])
            for i, name in enumerate(task.parts)
        },
    )


def mean_of_finite(values: np.ndarray) -> float:
    """The mean of the finite numbers, NaN if there are none."""
    there = values[np.isfinite(values)]
    return float(there.mean()) if there.size else math.nan


def text_of(task: TextTask, tokenizer: Tokenizer, tokens: list[int]) -> str:
    """The text up to the first stop string."""
    return until_stop(tokenizer.decode(tokens), task.stop)


def stopped(task: TextTask, tokenizer: Tokenizer, tokens: list[int]) -> bool:
    """Whether a stop string ended the text that no end token did."""
    return bool(task.stop) and any(stop in tokenizer.decode(tokens) for stop in task.stop)


def best_of(judged: Judged, answers: int) -> Judged:
    """Of every `answers` consecutive prompts, which are the same one asked again, the best answer.

    (N, P answers) to (N, P). An answer that could not be scored is the worst.
    """
    if answers == 1:
        return judged

    def split(x: np.ndarray) -> np.ndarray:
        return x.reshape(x.shape[0], -1, answers)

    reward = split(judged.reward)
    best = np.argmax(np.where(np.isfinite(reward), reward, -np.inf), axis=-1)[..., None]
    chosen = lambda x: np.take_along_axis(split(x), best, axis=-1)[..., 0]
    parts = {name: chosen(part) for name, part in judged.parts.items()}
    return Judged(*(chosen(x) for x in judged[:5]), parts=parts)
