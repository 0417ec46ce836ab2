"""The learning curve as a PNG: the measured figures over what was seen, and the lines to beat."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from springroll.atomic import replacing
from springroll.run.metrics import Row
from springroll.run.progress import si

NAMES = {"tokens": "tokens", "env_steps": "environment steps"}
INK, TRAIN, VALID = "#303030", "#9db8d9", "#c8442e"


def draw_curve(
    path: Path,
    rows: Sequence[Row],
    *,
    train: str,
    valid: str,
    label: str,
    lines: Mapping[str, float] | None = None,
    title: str = "",
    unit: str = "tokens",
) -> None:
    """Draw `rows` (of metrics.jsonl) to a PNG.

    Args:
        path: the file, replaced whole.
        rows: each may hold the `unit`, `seconds`, and the figures named by `train` and `valid`.
        train: name of the training figure, drawn thin.
        valid: name of the validation figure, drawn bold.
        label: the figure and its unit, for the vertical axis.
        lines: horizontal lines to beat, by name.
        unit: what the horizontal axis counts.
    """
    # Figure and canvas by hand: pyplot would keep global state and choose a window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(7.2, 4.2), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    for name, color, width, mark, text in (
        (train, TRAIN, 1.0, "", "training"),
        (valid, VALID, 2.0, ".", "validation"),
    ):
        points = _points(rows, unit, name)
        if points:
            style = {"color": color, "linewidth": width, "marker": mark if points[1:] else "o"}
            axes.plot(*zip(*points, strict=True), **style, label=text)
    for name, value in (lines or {}).items():
        axes.axhline(value, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.6)
        axes.annotate(
            f"{name} {value:.2f}",
            (1, value),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 2),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=8.5,
            color=INK,
        )
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{NAMES.get(unit, unit)} of all members", color=INK)
    axes.set_ylabel(label, color=INK)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: si(value)))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    rate = _per_second(rows, unit)
    if rate:
        seconds = axes.secondary_xaxis("top", functions=(_times(1 / rate), _times(rate)))
        seconds.set_xlabel("seconds, at the mean speed", color=INK, fontsize=8.5)
        seconds.tick_params(labelsize=8)
        seconds.spines["top"].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="best", fontsize=9)
    with replacing(path) as file:
        canvas.print_png(file)


def _times(factor: float) -> Callable[[ArrayLike], ArrayLike]:
    return lambda values: np.multiply(values, factor)


def _points(rows: Sequence[Row], unit: str, name: str) -> list[tuple[float, float]]:
    return [(row[unit], row[name]) for row in rows if row.get(name) is not None and unit in row]


def _per_second(rows: Sequence[Row], unit: str) -> float:
    last = rows[-1] if rows else {}
    return last.get(unit, 0) / last["seconds"] if last.get("seconds") else 0.0
