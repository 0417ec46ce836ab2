"""Evolution compared with GRPO: held-out accuracy of one pretrained model at equal wall-clock.

A small decoder partly learns two-digit sums from text (the recipe `arithmetic`). From its weights
both methods then learn from the same reward, with the same judge and generation engine, for the
same seconds, compiling included, with three seeds of problems and noise. Every run is the command
that users type, in a process of its own, one after the other.

    springroll bench finetune_vs_grpo -- [FOLDER] [SECONDS]

Runs are kept in FOLDER and not repeated: an interrupted bench goes on. It writes a table and a
picture there, finetune_vs_grpo.md and finetune_vs_grpo.png.
"""

import json
import statistics
from pathlib import Path
from typing import TypeAlias

from springroll.bench import measure
from springroll.bench.measure import command
from springroll.ranges import SECONDS

SEEDS = (0, 1, 2)
METHODS = {"es": ("arithmetic-es", "#c8442e"), "grpo": ("arithmetic-grpo", "#4c72b0")}
NAMES = {"es": "evolution (springroll)", "grpo": "GRPO"}
FIGURES = ("accuracy", "format_rate", "truncation_rate", "mean_length")

Row: TypeAlias = dict[str, float]  # of metrics.jsonl


def run(
    folder: str = "runs/finetune_vs_grpo",
    seconds: float = 150.0,
    seeds: tuple[int, ...] = SEEDS,
    pretraining: tuple[str, ...] = (),
    options: tuple[str, ...] = (),
) -> dict[str, float]:
    """Held-out accuracy before and after, by method: the mean over the seeds.

    Args:
        folder: where runs are kept.
        seconds: of each fine-tuning run.
        pretraining, options: further options of `springroll train` and `finetune`.
    """
    root = Path(folder)
    runs: dict[str, list[list[Row]]] = {method: [] for method in METHODS}
    model = pretrained(root, pretraining)
    for seed in seeds:
        for method, (recipe, _) in METHODS.items():
            out = root / f"seed-{seed}" / method
            common = ("--model", str(model), "--seed", str(seed), "--seconds", str(seconds))
            command("finetune", "--recipe", recipe, "--out", str(out), *common, *options)
            rows = [json.loads(row) for row in (out / "metrics.jsonl").read_text().splitlines()]
            runs[method].append([row for row in rows if "valid_accuracy" in row])
    (root / "finetune_vs_grpo.md").write_text(table(runs, seeds))
    draw(runs, root / "finetune_vs_grpo.png")
    figures: dict[str, float] = {"seconds": seconds, "seeds": len(seeds)}
    for method, rows in runs.items():
        start, end = ([curve[at]["valid_accuracy"] for curve in rows] for at in (0, -1))
        figures["start"] = statistics.mean(start)
        figures[method] = statistics.mean(end)
        figures[f"{method}_least_gain"] = min(b - a for a, b in zip(start, end, strict=True))
    return figures


def pretrained(folder: Path, options: tuple[str, ...]) -> Path:
    """The folder of the model to start from, made if it is not there."""
    model = folder / "model"
    if not (model / "config.json").exists():
        out = str(folder / "pretraining")
        command("train", "--recipe", "arithmetic", "--out", out, *options)
        command("export", out, str(model))
    return model


def table(runs: dict[str, list[list[Row]]], seeds: tuple[int, ...]) -> str:
    """Markdown: every run's figures before and after."""
    spelt = lambda row, name: (
        f"{row[f'valid_{name}']:.2f}"
        if name == "mean_length"
        else f"{100 * row[f'valid_{name}']:.1f} %"
    )
    heads = [name.replace("_", " ") for name in FIGURES]
    lines = [f"| seed | | {' | '.join(heads)} |", "|---|---|" + "---|" * len(heads)]
    for index, seed in enumerate(seeds):
        before = next(iter(runs.values()))[index][0]
        rows = {"pretrained": before} | {NAMES[m]: runs[m][index][-1] for m in runs}
        for name, row in rows.items():
            lines.append(
                f"| {seed} | {name} | {' | '.join(spelt(row, figure) for figure in FIGURES)} |"
            )
    return "\n".join(lines) + "\n"


def draw(runs: dict[str, list[list[Row]]], path: Path) -> None:
    """Held-out accuracy over seconds of training, a line per run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for method, rows in runs.items():
        for index, curve in enumerate(rows):
            points = [(row["seconds"], 100 * row["valid_accuracy"]) for row in curve]
            label = NAMES[method] if not index else None
            colour = METHODS[method][1]
            axes.plot(*zip(*points, strict=True), color=colour, label=label, linewidth=1.6)
    axes.set_xlabel("seconds of training, compiling included")
    axes.set_ylabel("held-out sums right, %")
    axes.set_ylim(0, 100)
    axes.set_xlim(left=0)
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path)


def main() -> None:
    parser = measure.Arguments(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", nargs="?", default="runs/finetune_vs_grpo")
    parser.add_number("seconds", float, SECONDS, nargs="?", default=150.0)
    options = parser.parse_args()
    figures = run(options.folder, options.seconds)
    ours, grpo = figures.pop("es"), figures.pop("grpo")
    measure.report(measure.record("finetune_vs_grpo", ours, grpo, ours / grpo, **figures))


if __name__ == "__main__":
    main()
