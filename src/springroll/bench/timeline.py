"""When each resource was busy during a step, drawn."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from springroll.bench.paced import Event

# Resource -> (what it is called, colour), from the top.
ROWS = {
    "compute": ("compute", "#4c72b0"),
    "send": ("to device", "#55a868"),
    "fetch": ("to host", "#c4a000"),
    "update": ("host AdamW", "#c44e52"),
}


def draw(steps: Mapping[str, Sequence[Event]], path: Path) -> None:
    """One panel per schedule, all with the same axis of seconds, each from the step's beginning."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.9 * len(steps)), layout="constrained")
    panels = figure.subplots(len(steps), sharex=True, squeeze=False)[:, 0]
    for panel, (name, events) in zip(panels, steps.items(), strict=True):
        start = min(e.start for e in events)
        length = max(e.stop for e in events) - start
        for at, (resource, (_, colour)) in enumerate(ROWS.items()):
            bars = [(e.start - start, e.stop - e.start) for e in events if e.resource == resource]
            panel.broken_barh(bars, (at - 0.4, 0.8), color=colour, edgecolor="white", linewidth=0.3)
        panel.set_yticks(range(len(ROWS)), [label for label, _ in ROWS.values()])
        panel.invert_yaxis()
        panel.axvline(length, color="black", linewidth=0.8)
        panel.set_title(f"{name}: {length:.2f} s a step", loc="left", fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlim(left=0)
    panels[-1].set_xlabel("seconds")
    figure.savefig(path, dpi=120)
