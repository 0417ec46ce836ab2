"""What to say of a handful of runs: the interquartile mean and how sure of it one is.

A mean follows one lucky seed and a median ignores half of what was run. The mean of the middle half
does neither. Its interval comes from drawing the runs again, with replacement and each task by
itself.

Source: Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice",
arXiv 2108.13264, sections 4.1 and 4.3.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Interval(NamedTuple):
    """A figure and its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def interquartile_mean(scores: ArrayLike, axis: int | None = None) -> np.ndarray:
    """The mean of what is left without the lowest and the highest quarter (rounded down) along
    `axis`; of all numbers together by default.

    >>> float(interquartile_mean([1, 2, 3, 100]))
    2.5
    """
    ordered = np.sort(np.asarray(scores, np.float64), axis=axis)
    axis = 0 if axis is None else axis
    count = ordered.shape[axis]
    middle = np.arange(count // 4, count - count // 4)
    return np.take(ordered, middle, axis).mean(axis)


def interquartile_range(scores: ArrayLike, axis: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The first and the third quartile."""
    low, high = np.quantile(np.asarray(scores, np.float64), (0.25, 0.75), axis=axis)
    return low, high


def interval(scores: ArrayLike, repeats: int = 2000, seed: int = 0) -> Interval:
    """The interquartile mean over all runs of all tasks, with a stratified bootstrap's interval.

    Args:
        scores: (runs, tasks), or (runs,) of one task.
        repeats: how often the runs are drawn again.
    """
    scores = np.asarray(scores, np.float64)
    scores = scores[:, None] if scores.ndim == 1 else scores
    runs, tasks = scores.shape
    drawn = np.random.default_rng(seed).integers(runs, size=(repeats, runs, tasks))
    again = scores[drawn, np.arange(tasks)].reshape(repeats, runs * tasks)
    low, high = np.quantile(interquartile_mean(again, axis=1), (0.025, 0.975))
    return Interval(float(interquartile_mean(scores)), float(low), float(high))
