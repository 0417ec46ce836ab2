"""`springroll rl`: a policy learns from the return of its episodes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from springroll.cli.recipe import config_of
from springroll.train.control_config import RLConfig

if TYPE_CHECKING:
    from rich.table import Table

DESCRIPTION = """\
Learn to act: a policy network, or anything that returns a number, from its score alone.

  springroll rl --env CartPole-v1 --seconds 30
  springroll rl --env navix-DoorKey-8x8 --pop-size 4096 --rank 4
  springroll rl --env my_module:score          a Python function of weights
  springroll rl --list                         every environment there is
"""


def run(argv: Sequence[str]) -> int:
    """Train; the exit code is 0 when the budget was spent, 130 after Ctrl-C."""
    if "--list" in argv:
        return listed()
    config = config_of(RLConfig, argv, DESCRIPTION)

    from rich.console import Console

    from springroll.train.control import rl

    result = rl(config, console=Console(stderr=True))
    if result.signal is None:
        Console().print(report(config.out, result.summary))
    return result.exit_code


def listed() -> int:
    """Print every environment: its id, observations, actions, and whether it is installed."""
    return 0


def report(out: str, summary: dict[str, Any]) -> "Table":
    """The end of a run: the return beside that of random actions, and the speed."""
    from pathlib import Path

    from rich.table import Table

    from springroll.train.progress import clock, gibibytes, si

    table = Table.grid(padding=(0, 2, 0, 0))
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
