"""What `springroll rl` does instead of a run: list environments, search over settings."""

import sys

from springroll.rl.config import RLConfig
from springroll.run.job import CommandLine
from springroll.run.options import read_number

WIDE = 110  # columns where nothing says how many there are


def search(line: CommandLine[RLConfig]) -> int:
    """Search over the settings that are not given, and print every trial, the best first."""
    from pathlib import Path

    from springroll.rl.tuning import Tuning

    trials, line = line.take("--trials")
    factor, line = line.take("--factor")
    given = {"trials": trials, "factor": factor}
    read = lambda name, text: int(read_number(f"--{name}", text, int))
    tuning = Tuning(**{name: read(name, text) for name, text in given.items() if text is not None})
    config = line.config()

    from rich.console import Console

    from springroll.rl.tuning_runs import Interrupted, best_command, budget_of, table, tune

    console = Console(stderr=True)
    try:
        records = tune(config, tuning, console)
    except Interrupted as stopped:
        console.print(f"stopped, all saved; go on with --resume --out {config.out}", markup=False)
        return 128 + stopped.signal
    Console(width=None if sys.stdout.isatty() else WIDE).print(table(records, budget_of(config)[0]))
    print(f"\nbest: {best_command(Path(config.out))}\ntable: {config.out}/trials.md")
    return 0


def list_environments(line: CommandLine[RLConfig]) -> int:
    """Print every environment: its id, observations, actions, steps, and whether it is there."""
    del line  # there are no further options
    from rich.console import Console
    from rich.table import Table

    from springroll.envs.suites import SUITES, listing

    lines = listing()
    table = Table("id", "observations", "actions", "steps", "suite", box=None)
    for entry in lines:
        there = entry.suite if entry.installed else f"{entry.suite}, not installed"
        size, steps = f"{entry.observation_size:,}", f"{entry.max_steps:,}"
        table.add_row(
            entry.id, size, entry.actions, steps, there, style=None if entry.installed else "dim"
        )
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    console.print(table)
    for suite in dict.fromkeys(entry.suite for entry in lines if not entry.installed):
        console.print(f"{suite}: {SUITES[suite]}", markup=False, highlight=False, soft_wrap=True)
    console.print(
        "Gymnasium's, in worker processes: gymnasium-ID. Code of your own: module:function.",
        highlight=False,
    )
    return 0
