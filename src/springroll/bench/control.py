"""EGGROLL, OpenES and PPO on control tasks at equal wall-clock on this machine.

Every run is the command that users type, in a process of its own, one after the other, with the
same seconds of training, compiling and all. A method's settings on a task are those of a search
(`springroll rl --tune`) where there is one in SETTINGS/TASK/METHOD, else those below.

    python -m springroll.bench.control [--tasks ID ...] [--seconds S] [--seeds N] [--out FOLDER]
                                       [--methods METHOD ...] [--settings FOLDER]

Runs are kept in FOLDER/TASK/METHOD and not repeated: an interrupted bench goes on. It writes
FOLDER/control.md, a table of interquartile means with 95 % intervals, and FOLDER/control.png, the
return over seconds. By default half an hour a task.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from springroll.bench import measure
from springroll.bench.control_runs import Run, draw, figures, over_all, read, table
from springroll.bench.finetune_vs_grpo import command

METHODS = ("eggroll", "openes", "ppo")
TASKS = ("CartPole-v1", "Pendulum-v1", "navix-Empty-5x5")

Options = Mapping[tuple[str, str], Sequence[str]]  # task and method -> words of a command line

# What two CPU cores can afford; other tasks and methods have the defaults of `springroll rl`.
OPTIONS: dict[tuple[str, str], tuple[str, ...]] = {}


def run(
    folder: str = "runs/control",
    tasks: Sequence[str] = TASKS,
    methods: Sequence[str] = METHODS,
    seconds: float = 60.0,
    seeds: int = 10,
    options: Options = OPTIONS,
    common: Sequence[str] = ("--no-gif",),
) -> dict[str, Any]:
    """Make the runs that are not there yet, and put all beside each other.

    Args:
        folder: where runs are kept.
        seconds: of training, of each run.
        seeds: runs of each method on each task.
        options: of a method on a task.
        common: options of every run.
    """
    root = Path(folder)
    runs: dict[str, dict[str, list[Run]]] = {task: {m: [] for m in methods} for task in tasks}
    for task in tasks:
        for seed in range(seeds):
            for method in methods:
                out = place(root, task, method) / f"seed-{seed}"
                what = ("--env", task, "--method", method, *options.get((task, method), ()))
                budget = ("--seconds", str(seconds), "--seed", str(seed), "--out", str(out))
                try:
                    command("rl", *what, *budget, *common)
                except subprocess.CalledProcessError as error:
                    print(f"{task}, {method}: exit code {error.returncode}", file=sys.stderr)
                else:
                    runs[task][method].append(read(out))
        done = {task: each for task, each in runs.items() if any(each.values())}
        if done:  # what there is so far
            (root / "control.md").write_text(table(done, seconds))
            draw(done, seconds, root / "control.png")
    tasks_of_all, whole = over_all(runs)
    found = {method: each.value for method, each in whole.items()}
    return {"returns": figures(runs), "normalised": found, "normalised_tasks": tasks_of_all}


def place(folder: Path, task: str, method: str) -> Path:
    """Where the runs, or the search, of a method on a task are."""
    return folder / re.sub(r"[^\w.-]+", "-", task) / method


def searched(folder: Path, tasks: Sequence[str], methods: Sequence[str]) -> Options:
    """The options that searches found best, and those below where there was none."""
    found = dict(OPTIONS)
    for task in tasks:
        for method in methods:
            best = place(folder, task, method) / "best.json"
            if best.exists():
                found[task, method] = tuple(json.loads(best.read_text())["options"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="EGGROLL, OpenES and PPO at equal wall-clock.")
    parser.add_argument("--tasks", nargs="+", default=TASKS, metavar="ID")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", default="runs/control", metavar="FOLDER")
    parser.add_argument("--settings", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    options = searched(given.settings, given.tasks, given.methods) if given.settings else OPTIONS
    found = run(given.out, given.tasks, given.methods, given.seconds, given.seeds, options)
    whole = found["normalised"]
    ours, theirs = whole.get("eggroll", float("nan")), whole.get("openes", float("nan"))
    about = {"unit": "normalised return, PPO is 1", "seconds": given.seconds, "seeds": given.seeds}
    measure.report(measure.record("control", ours, theirs, ours / theirs, **about, **found))


if __name__ == "__main__":
    main()
