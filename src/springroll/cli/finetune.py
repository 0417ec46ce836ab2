"""`springroll finetune`: a language model learns from a reward, without gradients or with."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from springroll.cli.recipe import config_of
from springroll.finetune.config import FinetuneConfig

if TYPE_CHECKING:
    from rich.table import Table

DESCRIPTION = """\
Fine-tune a language model on a reward: forward passes only, or GRPO to compare with.

  springroll finetune --model FOLDER --task "countdown numbers=3 largest=20"
  springroll finetune --model FOLDER --task my_module:reward --data prompts.jsonl
"""


def run(argv: Sequence[str]) -> int:
    """Fine-tune; the exit code is 0 when the budget was spent, 130 after Ctrl-C."""
    config = config_of(FinetuneConfig, argv, DESCRIPTION)

    from rich.console import Console

    from springroll.finetune.job import finetune

    result = finetune(config, console=Console(stderr=True))
    if result.signal is None:
        Console().print(report(config.out, result.summary))
    return result.exit_code


def report(out: str, summary: dict[str, Any]) -> "Table":
    """The end of a run: accuracy beside what else changed, its speed, and what to do next."""
    from rich.table import Table

    from springroll.program import program
    from springroll.run.progress import clock, gibibytes, si

    table = Table.grid(padding=(0, 2, 0, 0))
    for name, unit in (
        ("accuracy", "%"),
        ("format_rate", "%"),
        ("truncation_rate", "%"),
        ("mean_length", " tokens"),
        ("reward", ""),
    ):
        value = summary.get(f"valid_{name}")
        if value is not None:
            spelt = f"{100 * value:.1f}" if unit == "%" else f"{value:.3g}"
            table.add_row(f"held-out {name.replace('_', ' ')}", spelt + unit)
    table.add_row("speed", f"{si(summary['tokens_per_second'])} tokens/s")
    table.add_row("time", f"{clock(summary['seconds'])}, {summary['generations']:,} generations")
    table.add_row("memory", gibibytes(summary["peak_memory_bytes"]))
    table.add_row("curve", f"{out}/curve.png")
    table.add_row("next", f"{program()} export {out} FOLDER")
    return table
