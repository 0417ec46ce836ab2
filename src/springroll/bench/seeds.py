"""Learning curves of several variants at several seeds: taken, tabled and drawn."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from springroll.markdown import markdown_table
from springroll.run.task import Task

Curves = Mapping[str, Sequence[Sequence[float]]]  # variant -> seed -> value at each point


def points(generations: int, count: int = 12) -> list[int]:
    """Generations to validate after: 0, the last, and evenly between."""
    return sorted({round(x) for x in np.linspace(0, generations, count + 1)})


def curve(task: Task, at: Sequence[int]) -> list[float]:
    """Validation bits per byte after each of the generations `at`, of which the first is 0."""
    assert task.validate is not None
    state, carry = task.init()
    values = [float(task.validate(state, carry)["valid_bits_per_byte"])]
    for generation in range(at[-1]):
        members = task.ask(state)
        fitness, carry, _ = task.evaluate(state, members, carry, task.batch(generation))
        state, _ = task.tell(state, members, np.asarray(fitness))
        if generation + 1 in at:
            values.append(float(task.validate(state, carry)["valid_bits_per_byte"]))
    return values


def table(
    final: Mapping[str, Sequence[float]],
    extra: Mapping[str, Mapping[str, str]] | None = None,
    lines: Mapping[str, float] | None = None,
) -> str:
    """Markdown: a row per variant, a column per seed, the mean, and further columns of words.

    Args:
        extra: column -> variant -> cell.
        lines: bits per byte to compare with, by name, in the column of the mean.
    """
    extra, lines = extra or {}, lines or {}
    seeds = len(next(iter(final.values())))
    head = ["", *(f"seed {i}" for i in range(seeds)), "mean", *extra]
    rows = [head]
    for name, values in final.items():
        cells = [f"{value:.3f}" for value in (*values, statistics.mean(values))]
        rows.append([name, *cells, *(column.get(name, "") for column in extra.values())])
    for name, bits in lines.items():
        blank = [""] * len(extra)
        rows.append([name.removesuffix("_bits_per_byte"), *[""] * seeds, f"{bits:.3f}", *blank])
    return markdown_table(rows)


def draw(
    path: Path,
    curves: Curves,
    tokens: Sequence[int],
    lines: Mapping[str, float],
    *,
    title: str,
    top: float,
    xlabel: str = "million tokens",
) -> None:
    """The mean curve of each variant over its seeds, and the range, as a PNG.

    Args:
        tokens: at each point of a curve.
        lines: unigram and bigram bits per byte.
        top: of the vertical axis; the first steps come from far above.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    millions = np.array(tokens) / 1e6
    for name, found in curves.items():
        low, mean, high = np.min(found, 0), np.mean(found, 0), np.max(found, 0)
        (line,) = axes.plot(millions, mean, label=name)
        axes.fill_between(millions, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    for name in ("unigram", "bigram"):
        bits = lines[f"{name}_bits_per_byte"]
        axes.axhline(bits, color="grey", linewidth=0.8, linestyle=":")
        axes.annotate(name, (millions[-1], bits), ha="right", va="bottom", color="grey", fontsize=8)
    axes.set(ylim=(None, top), xlabel=xlabel, ylabel="validation bits per byte", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
