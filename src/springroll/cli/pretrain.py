"""`springroll pretrain`: train a byte language model on text, without gradients."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from springroll.cli.recipe import config_of
from springroll.pretrain.config import PretrainConfig

if TYPE_CHECKING:
    from rich.table import Table

DESCRIPTION = "Train a byte-level language model on text by evolution: forward passes only."


def run(argv: Sequence[str]) -> int:
    """Train; the exit code is 0 when the budget was spent, 130 after Ctrl-C."""
    config = config_of(PretrainConfig, argv, DESCRIPTION)

    from rich.console import Console

    from springroll.pretrain.pretrain import pretrain

    result = pretrain(config, console=Console(stderr=True))
    if result.signal is None:
        Console().print(report(config.out, result.summary))
    return result.exit_code


def report(out: str, summary: dict[str, Any]) -> "Table":
    """The end of a run: the score beside the lines to beat, its speed, and what to do next."""
    from rich.table import Table

    from springroll.program import program
    from springroll.run.progress import clock, gibibytes, si

    table = Table.grid(padding=(0, 2, 0, 0))
    valid = summary.get("valid_bits_per_byte")
    if valid is not None:
        table.add_row("validation", f"{valid:.3f} bits/byte")
    for name in ("unigram", "bigram", "gzip"):
        line = summary.get(f"{name}_bits_per_byte")
        if line is not None:
            table.add_row(name, f"{line:.3f} bits/byte{_distance(valid, line)}")
    table.add_row("speed", f"{si(summary['tokens_per_second'])} tokens/s")
    table.add_row("time", f"{clock(summary['seconds'])}, {summary['generations']:,} generations")
    table.add_row("memory", gibibytes(summary["peak_memory_bytes"]))
    table.add_row("curve", f"{out}/curve.png")
    table.add_row("next", f"{program()} sample {out}")
    return table


def _distance(valid: float | None, line: float) -> str:
    if valid is None:
        return ""
    return f", beaten by {line - valid:.3f}" if valid < line else f", {valid - line:.3f} to go"
