"""The runs of `bench.control`: read, compared, tabled and drawn.

A method's figure is the interquartile mean of its runs. A mean follows one lucky seed and a median
ignores half of the runs; the mean of the middle half does neither. Its interval comes from drawing
the runs again, with replacement and each task by itself.

Source: Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice",
arXiv 2108.13264, sections 4.1 and 4.3.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from springroll.markdown import markdown_table

COLOURS = {"eggroll": "#c8442e", "openes": "#d9a441", "ppo": "#4c72b0"}
NAMES = {"eggroll": "EGGROLL", "openes": "OpenES", "ppo": "PPO"}
POINTS = 120  # of a curve


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


class Run(NamedTuple):
    """The figures of one run."""

    seconds: tuple[float, ...]  # of training, at each validation
    returns: tuple[float, ...]  # the mean return of the weights themselves
    random: float  # the mean return of random actions
    rate: float  # environment steps per second

    @property
    def final(self) -> float:
        return self.returns[-1]


Methods = Mapping[str, Sequence[Run]]  # method -> seed
Runs = Mapping[str, Methods]  # task -> method -> seed


def read(folder: Path) -> Run:
    """A finished run of `springroll rl`."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    validations = [(row["seconds"], row["eval_return"]) for row in rows if "eval_return" in row]
    summary = json.loads((folder / "summary.json").read_text())
    seconds, returns = zip(*validations, strict=True)
    return Run(seconds, returns, summary["random_return"], summary["env_steps_per_second"])


def final(runs: Sequence[Run]) -> Interval:
    """The final return of a method on a task."""
    return interval([run.final for run in runs])


def at(run: Run, times: np.ndarray) -> np.ndarray:
    """The newest validation at each of the times; before the first one, the first."""
    newest = np.searchsorted(run.seconds, times, side="right") - 1
    return np.asarray(run.returns)[np.maximum(newest, 0)]


def random_return(methods: Methods) -> float:
    """The mean return of random actions over all runs of a task."""
    return statistics.mean(run.random for runs in methods.values() for run in runs)


def normalised(methods: Methods) -> dict[str, np.ndarray] | None:
    """Final returns of a task, 0 for random actions and 1 for PPO, by method (runs,).

    None where PPO is not surely better than random actions, or was not run.
    """
    zero = random_return(methods)
    if not methods.get("ppo") or final(methods["ppo"]).low <= zero:
        return None
    one = float(interquartile_mean([run.final for run in methods["ppo"]]))
    scaled = lambda run: (run.final - zero) / (one - zero)
    return {method: np.array([scaled(run) for run in runs]) for method, runs in methods.items()}


def over_all(runs: Runs) -> tuple[list[str], dict[str, Interval]]:
    """The tasks that can be normalised, and each method over all of them that it ran on."""
    scaled = {task: scores for task, methods in runs.items() if (scores := normalised(methods))}
    intervals = {}
    for method in NAMES:
        columns = [scores[method] for scores in scaled.values() if len(scores.get(method, ()))]
        if columns and len(columns) == len(scaled):
            seeds = min(map(len, columns))
            intervals[method] = interval(np.stack([column[:seeds] for column in columns], axis=1))
    return list(scaled), intervals


def figures(runs: Runs) -> dict[str, dict[str, list[float]]]:
    """Plain numbers: task -> method -> (interquartile mean, low, high)."""
    rounded = lambda interval: [float(f"{value:.4g}") for value in interval]
    return {
        task: {method: rounded(final(seeds)) for method, seeds in methods.items() if seeds}
        for task, methods in runs.items()
    }


def table(runs: Runs, seconds: float) -> str:
    """Markdown: final returns, over all tasks, and steps per second."""
    names = [method for method in NAMES if any(method in methods for methods in runs.values())]
    seeds = max(len(done) for methods in runs.values() for done in methods.values())
    heads = [NAMES[name] for name in names]
    returns = [["task", "random", *heads]]
    for task, methods in runs.items():
        cells = [str(final(methods[name])) if methods.get(name) else "failed" for name in names]
        returns.append([task, f"{random_return(methods):.4g}", *cells])
    tasks, whole = over_all(runs)
    if whole:
        cells = [str(whole[name]) if name in whole else "" for name in names]
        returns.append([f"all of: {', '.join(tasks)}; PPO is 1", "0", *cells])
    rates = [["task", *heads]]
    for task, methods in runs.items():
        rate = lambda done: f"{statistics.median(run.rate for run in done):,.0f}" if done else ""
        rates.append([task, *(rate(methods.get(name)) for name in names)])
    return (
        f"Final return after {seconds:g} s of training, compiling not counted: interquartile mean "
        f"of {seeds} seeds [95 % interval].\n\n{markdown_table(returns)}\n"
        f"Environment steps per second, median of the seeds:\n\n{markdown_table(rates)}"
    )


def draw(runs: Runs, seconds: float, path: Path) -> None:
    """The return over seconds of training, a panel a task: interquartile mean and range."""
    from matplotlib.figure import Figure

    across = min(3, len(runs))
    down = math.ceil(len(runs) / across)
    figure = Figure(figsize=(4.2 * across, 3.1 * down), dpi=150, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    times = np.linspace(0, seconds, POINTS)
    for panel, (task, methods) in zip(panels, runs.items(), strict=False):
        for method, done in methods.items():
            if not done:
                continue
            curves = np.stack([at(run, times) for run in done])
            colour = COLOURS[method]
            mean = interquartile_mean(curves, axis=0)
            panel.plot(times, mean, color=colour, label=NAMES[method], linewidth=1.6)
            panel.fill_between(times, *interquartile_range(curves), color=colour, alpha=0.2, lw=0)
        panel.axhline(random_return(methods), color="0.5", linestyle=":", linewidth=1)
        panel.set_title(task, fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_xlim(0, seconds)
    for panel in panels[len(runs) :]:
        panel.axis("off")
    panels[0].legend(frameon=False, fontsize=9)
    figure.supxlabel("seconds of training, compiling not counted", fontsize=10)
    figure.supylabel("return", fontsize=10)
    figure.savefig(path)
