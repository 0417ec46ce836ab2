"""Low-rank and full gradients: final loss at equal data and steps, each at its best rate.

Every method is tuned over a grid of learning rates with one seed; where the best rate is at the
edge of the grid, the grid grows by one. Then further seeds run at the best rate.

    springroll bench lowgrad_quality -- [FOLDER] [MODEL ...]

Runs are kept in FOLDER/runs.jsonl as they end, and not repeated: an interrupted bench goes on. With
all models done, it writes lowgrad_quality.md and a PNG per model there.
"""

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from springroll.bench import measure
from springroll.cpu import use_cpu_devices
from springroll.markdown import markdown_table
from springroll.run.task import Task
from springroll.train.build import build
from springroll.train.config import TrainConfig

Fields: TypeAlias = dict[str, Any]  # of TrainConfig

MODELS = ("llama-1m", "moe-1m")
METHODS: dict[str, Fields] = {
    "adamw": {"optimizer": "adamw"},
    "lowgrad": {"optimizer": "lowgrad", "refresh_interval": 10},
    "apollo": {"optimizer": "apollo"},
    "lowgrad-power": {"optimizer": "lowgrad", "refresh": "power"},
}
GRID: dict[str, list[float]] = {  # learning rates to begin with, ascending by a factor of two
    "adamw": [1.25e-3, 2.5e-3, 5e-3],
    "lowgrad": [1.25e-3, 2.5e-3, 5e-3],
    "apollo": [2.5e-3, 5e-3, 1e-2],
    "lowgrad-power": [1.25e-3, 2.5e-3, 5e-3],
}
OURS = "lowgrad"
SEEDS = (0, 1, 2)
SIZE: Fields = {
    "data": "stdlib",
    "batch": 8,
    "sequence": 128,
    "refresh_interval": 50,
    "valid_streams": 128,
    "valid_tokens": 128,
}

Curves = Mapping[str, Sequence[Sequence[float]]]  # variant -> seed -> value at each point
Runs = dict[tuple[str, str, float, int], list[float]]  # model, method, rate, seed -> curve


class Bench:
    """The runs so far, in a file."""

    def __init__(self, path: Path, steps: int, **options: str | int):
        self.path, self.at = path, points(steps)
        fixed = {"generations": steps, "schedule_steps": steps}
        self.options: Fields = SIZE | options | fixed
        self.runs: Runs = {}
        if path.exists():
            for line in path.read_text().splitlines():
                row = json.loads(line)
                if row["options"] == self.options:
                    self.runs[row["model"], row["method"], row["lr"], row["seed"]] = row["curve"]

    def config(self, model: str, method: str, lr: float, seed: int) -> TrainConfig:
        which: Fields = {"model": model, "lr": lr, "seed": seed}
        return TrainConfig(**(which | self.options | METHODS[method]))

    def final(self, model: str, method: str, lr: float, seed: int) -> float:
        """The last validation of a run, run now if it was not yet."""
        key = (model, method, lr, seed)
        if key not in self.runs:
            values = curve(build(self.config(*key)).task, self.at)
            self.runs[key] = values
            names = dict(zip(("model", "method", "lr", "seed"), key, strict=True))
            row = {**names, "curve": values, "options": self.options}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{model} {method} lr {lr:g} seed {seed}: {values[-1]:.4f}", file=sys.stderr)
        return self.runs[key][-1]

    def best_rate(self, model: str, method: str) -> float:
        """The rate of lowest final loss, tuned on the first seed, inside its grid."""
        rates = list(GRID[method])
        score = lambda lr: self.final(model, method, lr, SEEDS[0])
        while True:
            best = min(rates, key=score)
            if best == rates[0]:
                rates.insert(0, best / 2)
            elif best == rates[-1]:
                rates.append(best * 2)
            else:
                return best


def run(folder: Path, model: str, steps: int = 300, **options: str | int) -> measure.Result:
    """All methods on one model; `options` are fields of TrainConfig."""
    bench = Bench(folder / "runs.jsonl", steps, **options)
    best = {method: bench.best_rate(model, method) for method in GRID}
    final = {
        method: [bench.final(model, method, lr, seed) for seed in SEEDS]
        for method, lr in best.items()
    }
    mean = {method: statistics.mean(values) for method, values in final.items()}
    lines = build(bench.config(model, "adamw", best["adamw"], 0)).lines
    config = bench.config(model, "adamw", best["adamw"], 0)
    gap = {method: value / mean["adamw"] - 1 for method, value in mean.items()}
    return measure.record(
        "lowgrad_quality",
        ours=mean[OURS],
        baseline=mean["adamw"],
        ratio=mean[OURS] / mean["adamw"],
        unit="validation bits per byte, mean of three seeds",
        model=model,
        learning_rate=best,
        final=final,
        gap=gap,
        tokens=[step * config.batch * config.sequence for step in bench.at],
        curves={
            method: [bench.runs[model, method, lr, seed] for seed in SEEDS]
            for method, lr in best.items()
        },
        lines=lines,
    )


def summary(result: measure.Result) -> str:
    """Markdown: every method's seeds, mean, distance from AdamW and learning rate."""
    return table(
        result["final"],
        {
            "relative to AdamW": {
                name: f"{100 * gap:+.1f} %" for name, gap in result["gap"].items()
            },
            "learning rate": {name: f"{lr:g}" for name, lr in result["learning_rate"].items()},
        },
        result["lines"],
    )


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
    for name, values in curves.items():
        low, mean, high = np.min(values, 0), np.mean(values, 0), np.max(values, 0)
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


def main() -> None:
    parser = measure.Arguments(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default="runs/lowgrad_quality")
    parser.add_argument("models", nargs="*", default=MODELS)
    options = parser.parse_args()
    use_cpu_devices(1)
    folder, pages = Path(options.folder), []
    for model in options.models:
        result = run(folder, model)
        measure.report({k: v for k, v in result.items() if k not in ("curves", "tokens", "lines")})
        pages.append(f"### {model}\n\n{summary(result)}")
        print(pages[-1])
        (folder / f"{model}.json").write_text(json.dumps(result, indent=1) + "\n")
        draw(
            folder / f"{model}.png",
            result["curves"],
            result["tokens"],
            result["lines"],
            title=f"{model}: each method at its best rate, mean and range of 3 seeds",
            top=result["lines"]["unigram_bits_per_byte"] + 0.3,
        )
    (folder / "lowgrad_quality.md").write_text("\n".join(pages))


if __name__ == "__main__":
    main()
