"""What every run says at its end: its speed, time, memory and curve. Imports no JAX."""

from collections.abc import Mapping

from springroll.run.job import Rows, Summary
from springroll.run.progress import clock, counted, gibibytes, si


def closing_rows(
    out: str, summary: Summary, unit: str = "tokens", iteration: str = "generation"
) -> Rows:
    """Lines of a report that all jobs share.

    Args:
        out: the run folder.
        summary: what summary.json holds.
        unit: what the speed counts, as the summary names it.
        iteration: what one turn of the loop is called: a generation, or a step of an optimizer.
    """
    speed = f"{si(summary[f'{unit}_per_second'])} {unit.removeprefix('env_')}/s"
    members = f", {si(summary['members_per_second'])} members/s" if "sigma" in summary else ""
    return (
        ("speed", speed + (members if unit != "tokens" else "")),
        ("time", f"{clock(summary['seconds'])}, {counted(int(summary['generations']), iteration)}"),
        ("memory", gibibytes(int(summary["peak_memory_bytes"]))),
        ("curve", f"{out}/curve.png"),
    )


def figure_rows(summary: Summary, names: Mapping[str, tuple[str, str]]) -> Rows:
    """Figures of a summary as lines; those it does not have are left out.

    Args:
        names: label -> (name in the summary, unit); with the unit "%" a share is spelt in percent.
    """
    number = lambda value: f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
    spelt = lambda value, unit: f"{100 * value:.1f}" if unit == "%" else number(value)
    return [
        (label, spelt(summary[name], unit) + unit)
        for label, (name, unit) in names.items()
        if summary.get(name) is not None
    ]
