"""`springroll rl`: a policy learns from the return of its episodes."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from springroll.cli.options import taken
from springroll.cli.recipe import config_of
from springroll.errors import InputError
from springroll.rl.config import RLConfig

if TYPE_CHECKING:
    from rich.table import Table

WIDE = 110  # columns where nothing says how many there are
DESCRIPTION = """\
Learn to act: a policy network, or anything that returns a number, from its score alone.

  springroll rl --env CartPole-v1 --seconds 30
  springroll rl --env navix-DoorKey-8x8 --pop-size 4096 --rank 4
  springroll rl --env my_module:score          a Python function of weights
  springroll rl --list                         every environment there is
  springroll rl --tune --env ID --seconds 60 [--trials 20] [--factor 3]
                                               search over the settings that are not given
"""


def run(argv: Sequence[str]) -> int:
    """Train; the exit code is 0 when the budget was spent, 130 after Ctrl-C."""
    if "--list" in argv:
        return listed()
    if "--tune" in argv:
        return tuned([each for each in argv if each != "--tune"])
    config = config_of(RLConfig, argv, DESCRIPTION)

    from rich.console import Console

    from springroll.rl.job import rl

    result = rl(config, console=Console(stderr=True))
    if result.signal is None:
        Console().print(report(config.out, result.summary))
    return result.exit_code


def tuned(argv: Sequence[str]) -> int:
    """Search over the settings that are not given, and print every trial, the best first."""
    from pathlib import Path

    from springroll.rl.tuning import Tuning

    trials, argv = taken(argv, "--trials")
    factor, argv = taken(argv, "--factor")
    given = {"trials": trials, "factor": factor}
    tuning = Tuning(**{name: whole(f"--{name}", x) for name, x in given.items() if x is not None})
    config = config_of(RLConfig, argv, DESCRIPTION)

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


def whole(name: str, value: str) -> int:
    """A whole number of the command line."""
    try:
        return int(value)
    except ValueError:
        raise InputError(f"{name} is {value!r}; expected a whole number") from None


def listed() -> int:
    """Print every environment: its id, observations, actions, steps, and whether it is there."""
    from rich.console import Console
    from rich.table import Table

    from springroll.envs.suites import SUITES, listing

    lines = listing()
    table = Table("id", "observations", "actions", "steps", "suite", box=None)
    for line in lines:
        there = line.suite if line.installed else f"{line.suite}, not installed"
        cells = (line.id, f"{line.observation_size:,}", line.actions, f"{line.max_steps:,}", there)
        table.add_row(*cells, style=None if line.installed else "dim")
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    console.print(table)
    for suite in dict.fromkeys(line.suite for line in lines if not line.installed):
        console.print(f"{suite}: {SUITES[suite]}", markup=False, highlight=False, soft_wrap=True)
    console.print(
        "Gymnasium's, in worker processes: gymnasium-ID. Code of your own: module:function.",
        highlight=False,
    )
    return 0


def report(out: str, summary: dict[str, Any]) -> "Table":
    """The end of a run: the return beside that of random actions, and the speed."""
    from pathlib import Path

    from rich.table import Table

    from springroll.run.progress import clock, gibibytes, si

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(overflow="fold")  # paths are to be whole
    for name in ("eval_return", "random_return"):
        if summary.get(name) is not None:
            table.add_row(name.replace("_", " "), f"{summary[name]:.4g}")
    members = f", {si(summary['members_per_second'])} members/s" if "sigma" in summary else ""
    table.add_row("speed", f"{si(summary['env_steps_per_second'])} steps/s{members}")
    table.add_row("time", f"{clock(summary['seconds'])}, {summary['generations']:,} generations")
    table.add_row("memory", gibibytes(summary["peak_memory_bytes"]))
    table.add_row("curve", f"{out}/curve.png")
    if (Path(out) / "policy.gif").exists():
        table.add_row("episode", f"{out}/policy.gif")
    return table
