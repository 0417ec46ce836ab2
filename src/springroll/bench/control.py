"""EGGROLL, OpenES and PPO on control tasks at equal wall-clock on this machine.

Every run is the command that users type, in a process of its own, one after the other, with the
same seconds of training, compiling not counted. A method's settings on a task are those of a search
(`springroll rl --tune`) where there is one in SETTINGS/TASK/METHOD, else those of the quick recipes
(for both kinds of evolution) and of `train/ppo_settings.py`.

    springroll bench control -- [--tasks ID ...] [--seconds S] [--seeds N] [--out FOLDER]
                                       [--methods METHOD ...] [--settings FOLDER]

Runs are kept in FOLDER/TASK/METHOD and not repeated: an interrupted bench goes on. It writes
FOLDER/control.md, a table of interquartile means with 95 % intervals, and FOLDER/control.png, the
return over seconds. By default half an hour a task.
"""

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from springroll.bench import measure
from springroll.bench.control_runs import Run, draw, figures, over_all, read, table
from springroll.bench.measure import command
from springroll.errors import InputError
from springroll.ranges import COUNT, SECONDS
from springroll.rl.config import RLConfig, settings_for
from springroll.rl.recipes import QUICK
from springroll.rl.tuning import OF_THE_SEARCH, changed, flags

METHODS = ("eggroll", "openes", "ppo")
TASKS = ("CartPole-v1", "Pendulum-v1", "navix-Empty-5x5")
POINTS = 30  # of a curve at most, as validation takes a tenth of the time at most

Options = Mapping[tuple[str, str], Sequence[str]]  # task and method -> words of a command line


def run(
    folder: str = "runs/control",
    tasks: Sequence[str] = TASKS,
    methods: Sequence[str] = METHODS,
    seconds: float = 60.0,
    seeds: int = 10,
    options: Options | None = None,
    common: Sequence[str] = ("--no-gif",),
) -> measure.Result:
    """Make the runs that are missing, and compare all of them.

    Args:
        folder: where runs are kept.
        seconds: of training, of each run.
        seeds: runs of each method on each task.
        options: of a method on a task; the usual ones by default.
        common: options of every run.
    """
    root = Path(folder)
    own = settings(tasks, methods) if options is None else options
    runs: dict[str, dict[str, list[Run]]] = {task: {m: [] for m in methods} for task in tasks}
    for task in tasks:
        for seed in range(seeds):
            for method in methods:
                out = place(root, task, method) / f"seed-{seed}"
                what = ("--env", task, "--method", method, *own.get((task, method), ()))
                budget = ("--seconds", f"{seconds:g}", "--eval-every", f"{seconds / POINTS:g}")
                budget = (*budget, "--seed", str(seed), "--out", str(out))
                try:
                    command("rl", *what, *budget, *common)
                except subprocess.CalledProcessError as error:
                    print(f"{task}, {method}: exit code {error.returncode}", file=sys.stderr)
                else:
                    runs[task][method].append(read(out))
        done = {task: made for task, made in runs.items() if any(made.values())}
        if done:  # what there is so far
            (root / "control.md").write_text(table(done, seconds))
            draw(done, seconds, root / "control.png")
    if not any(made for methods_of in runs.values() for made in methods_of.values()):
        raise InputError(f"no run of {', '.join(tasks)} ended well; there is nothing to compare")
    tasks_of_all, whole = over_all(runs)
    normalised = {method: interval.value for method, interval in whole.items()}
    return {"returns": figures(runs), "normalised": normalised, "normalised_tasks": tasks_of_all}


def place(folder: Path, task: str, method: str) -> Path:
    """Where the runs, or the search, of a method on a task are."""
    return folder / re.sub(r"[^\w.-]+", "-", task) / method


def settings(
    tasks: Sequence[str], methods: Sequence[str], searches: Path | None = None
) -> dict[tuple[str, str], tuple[str, ...]]:
    """The options that searches found best, and the usual ones where there was none."""
    options = {}
    for task in tasks:
        for method in methods:
            best = place(searches, task, method) / "best.json" if searches else None
            if best is not None and best.exists():
                options[task, method] = tuple(json.loads(best.read_text())["options"])
            else:
                options[task, method] = usual(task, method)
    return options


def usual(task: str, method: str) -> tuple[str, ...]:
    """PPO's settings of the task, with observations in deviations as in the paper; those of a quick
    recipe for evolution."""
    if method == "ppo":
        config = RLConfig(ppo=settings_for(task), normalise=True)
    else:
        config = next((config for _, _, config in QUICK.values() if config.env == task), RLConfig())
    given = changed(config, RLConfig())
    return tuple(flags({name: x for name, x in given.items() if name not in OF_THE_SEARCH}))


def main() -> None:
    parser = measure.Arguments(description="EGGROLL, OpenES and PPO at equal wall-clock.")
    parser.add_argument("--tasks", nargs="+", default=TASKS, metavar="ID")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_number("--seconds", float, SECONDS, default=60.0)
    parser.add_number("--seeds", int, COUNT, default=10)
    parser.add_argument("--out", default="runs/control", metavar="FOLDER")
    parser.add_argument("--settings", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    options = settings(given.tasks, given.methods, given.settings)
    try:
        result = run(given.out, given.tasks, given.methods, given.seconds, given.seeds, options)
    except InputError as error:
        parser.error(str(error))
    whole = result["normalised"]
    ours, theirs = whole.get("eggroll", float("nan")), whole.get("openes", float("nan"))
    about = {"unit": "normalised return, PPO is 1", "seconds": given.seconds, "seeds": given.seeds}
    measure.report(measure.record("control", ours, theirs, ours / theirs, **about, **result))


if __name__ == "__main__":
    main()
