"""Low-rank gradients beside full ones: final loss at equal data and steps, each at its best rate.

Every method is tuned over a grid of learning rates with one seed; where the best rate is at the
edge of the grid, the grid grows by one. Then further seeds run at the best rate.

    python -m springroll.bench.lowgrad_quality [FOLDER] [MODEL ...]

Runs are kept in FOLDER/runs.jsonl as they end, and not repeated: an interrupted bench goes on. With
all models done, it writes lowgrad_quality.md and a PNG per model there.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from springroll.bench import measure
from springroll.bench.seeds import curve, draw, points, table
from springroll.cpu import use_cpu_devices
from springroll.train.build import build
from springroll.train.config import TrainConfig

MODELS = ("llama-1m", "moe-1m")
METHODS: dict[str, dict[str, Any]] = {  # fields of TrainConfig
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
SIZE: dict[str, Any] = {
    "data": "stdlib",
    "batch": 8,
    "sequence": 128,
    "refresh_interval": 50,
    "valid_streams": 128,
    "valid_tokens": 128,
}

Runs = dict[tuple[str, str, float, int], list[float]]  # model, method, rate, seed -> curve


class Bench:
    """The runs so far, in a file."""

    def __init__(self, path: Path, steps: int, **options: Any):
        self.path, self.at = path, points(steps)
        fixed = {"generations": steps, "schedule_steps": steps}
        self.options: dict[str, Any] = SIZE | options | fixed
        self.runs: Runs = {}
        if path.exists():
            for line in path.read_text().splitlines():
                row = json.loads(line)
                if row["options"] == self.options:
                    self.runs[row["model"], row["method"], row["lr"], row["seed"]] = row["curve"]

    def config(self, model: str, method: str, lr: float, seed: int) -> TrainConfig:
        which: dict[str, Any] = {"model": model, "lr": lr, "seed": seed}
        return TrainConfig(**(which | self.options | METHODS[method]))

    def final(self, model: str, method: str, lr: float, seed: int) -> float:
        """The last validation of a run, run now if it was not yet."""
        key = (model, method, lr, seed)
        if key not in self.runs:
            found = curve(build(self.config(*key)).task, self.at)
            self.runs[key] = found
            names = dict(zip(("model", "method", "lr", "seed"), key, strict=True))
            row = {**names, "curve": found, "options": self.options}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{model} {method} lr {lr:g} seed {seed}: {found[-1]:.4f}", file=sys.stderr)
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


def run(folder: Path, model: str, steps: int = 300, **options: Any) -> dict[str, Any]:
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


def summary(result: dict[str, Any]) -> str:
    """Markdown: every method's seeds, mean, distance from AdamW and learning rate."""
    return table(
        result["final"],
        {
            "beside AdamW": {name: f"{100 * gap:+.1f} %" for name, gap in result["gap"].items()},
            "learning rate": {name: f"{lr:g}" for name, lr in result["learning_rate"].items()},
        },
        result["lines"],
    )


def main() -> None:
    use_cpu_devices(1)
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/lowgrad_quality")
    pages = []
    for model in sys.argv[2:] or MODELS:
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
