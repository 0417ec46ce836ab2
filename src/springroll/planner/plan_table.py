"""Plans as tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from springroll.memory import spelt
from springroll.planner.step_time import work

if TYPE_CHECKING:
    from springroll.planner.largest import Way
    from springroll.planner.planned import Plan

UPDATES = {
    "resident": "nothing streams: all layers and their state stay on the device",
    "host": "weights stream to the device, gradients return, the host updates",
    "device": "weights and state stream through the device, which updates them",
    "lowgrad": "weights stream to the device, nothing returns within a period",
    "evolve": "weights stream to the device once for the whole population",
}


def memory_table(plan: Plan) -> Table:
    """Bytes per tier and kind."""
    name = f"memory of {title(plan)}"
    table = Table("", "device", "host", title=name, title_justify="left", min_width=len(name))
    for column in table.columns[1:]:
        column.justify = "right"
    for kind in dict.fromkeys((*plan.device_bytes, *plan.host_bytes)):
        tiers = (plan.device_bytes.get(kind, 0), plan.host_bytes.get(kind, 0))
        table.add_row(kind, *(spelt(size) if size else "" for size in tiers))
    table.add_section()
    table.add_row("all", spelt(plan.device_peak), spelt(plan.host_peak))
    if plan.budgets.together is None:
        table.add_row("may use", spelt(plan.budgets.device), spelt(plan.budgets.host))
    else:
        table.add_row("may use together", spelt(plan.budgets.together), "")
    return table


def title(plan: Plan) -> str:
    """Model and method."""
    return f"{plan.model} by {plan.job.recipe.name} on {plan.device.name}"


def time_table(plan: Plan) -> Table:
    """What streams, what a step waits for, and how fast it goes."""
    job, seconds, layers = plan.job, plan.seconds, plan.job.config.layers
    table = Table(show_header=False, title="a step", title_justify="left")
    table.add_row("parameters", _parameters(plan))
    table.add_row("tokens", _tokens(plan))
    table.add_row("how", UPDATES[plan.place.mode])
    if plan.streams:
        table.add_row("layers that stay", f"{plan.place.layers} of {layers}")
    if job.recipe.trains:
        table.add_row("saved inputs on the device", f"{plan.place.inputs} of {layers} layers")
    table.add_section()
    busy = (
        ("computing", seconds.compute),
        ("copying to the device", seconds.to_device),
        ("copying to the host", seconds.to_host),
        ("updating on the host", seconds.host_update),
        ("what nothing hides", seconds.fill),
    )
    for name, taken in busy:
        if taken:
            table.add_row(name, f"{taken:.3g} s")
    table.add_row("step", f"[bold]{seconds.step:.3g} s[/bold]")
    table.add_row("waits for", f"[bold]{plan.bottleneck}[/bold]")
    if plan.hidden_from:
        table.add_row("link and host hidden from", f"{plan.hidden_from:,} tokens per step")
    table.add_section()
    table.add_row("tokens per second", f"[bold]{plan.tokens_per_second:,.0f}[/bold]")
    table.add_row("days per billion tokens", f"{plan.days_per_billion:.3g}")
    executed = sum(work(job)) / seconds.step / 1e12
    table.add_row("executed", f"{executed:.3g} TFLOP/s; assumed: {plan.rates.source}")
    return table


def alternatives_table(ways: Sequence[Way]) -> Table:
    """One model by every method, and the deepest model with its layers."""
    table = _ways_table("other methods", "what streams", "device", "host")
    for way in ways:
        plan = way.plan
        shown = ("does not fit", "", "", "") if plan is None else _shown(plan)
        table.add_row(way.method, *shown, _billions(way.parameters))
    return table


def capacity_table(ways: Sequence[Way]) -> Table:
    """The largest model by every method."""
    table = _ways_table("what this machine can train", "largest named model", "device", "host")
    for way in ways:
        plan = way.plan
        shown = ("none", "", "", "")
        if plan is not None:
            model = f"{plan.model}{'' if plan.streams else ' (resident)'}"
            shown = (model, *_shown(plan)[1:])
        table.add_row(way.method, *shown, _billions(way.parameters))
    return table


def _ways_table(name: str, second: str, *tiers: str) -> Table:
    last = ("tokens/s", "largest by layers")
    table = Table("method", second, *tiers, *last, title=name, title_justify="left")
    for column in table.columns[2:]:
        column.justify = "right"
    return table


def _shown(plan: Plan) -> tuple[str, str, str, str]:
    place, layers = plan.place, plan.job.config.layers
    streams = f"{layers - place.layers} of {layers} layers" if plan.streams else "nothing"
    if plan.streams and place.mode in ("host", "device"):
        streams += f", updated on the {place.mode}"
    speed = f"{plan.tokens_per_second:,.0f}"
    return streams, spelt(plan.device_peak), spelt(plan.host_peak), speed


def _parameters(plan: Plan) -> str:
    active = plan.job.config.active_parameters
    met = "" if active == plan.parameters else f", {_billions(active)} of which a token meets"
    return f"{_billions(plan.parameters)}{met}"


def _tokens(plan: Plan) -> str:
    job = plan.job
    of = f"{job.parts} micro-batches of {job.rows} x {job.sequence:,}"
    return f"{job.tokens:,} in {of}" if job.parts > 1 else f"{job.tokens:,} at once"


def _billions(parameters: float) -> str:
    return f"{parameters / 1e9:.3g}B" if parameters >= 1e9 else f"{parameters / 1e6:.3g}M"
