"""The plan of a training step: where everything lives, how long it takes, and its tables."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from springroll.deprecation import warn_renamed
from springroll.memory import on_each, spelt
from springroll.planner.devices import Device, Rates
from springroll.planner.footprint import Bytes, Placement, StepSpec, total
from springroll.planner.placement import Budgets
from springroll.planner.step_time import Seconds, tokens_to_hide, work
from springroll.planner.whole_run import DAY, WholeRun, whole_run

UPDATES = {
    "resident": "nothing streams: all layers and their state stay on the device",
    "host": "weights stream to the device, gradients return, the host updates",
    "device": "weights and state stream through the device, which updates them",
    "lowgrad": "weights stream to the device, nothing returns within a period",
    "evolve": "weights stream to the device once for the whole population",
}


@dataclass(frozen=True)
class Plan:
    """A step that fits: where everything lives, and how long it takes.

    model: its name; device: what it is planned for; budgets: bytes that may be used;
    spec: tokens, micro-batches, bytes of the method; place: what stays on the device;
    device_bytes, host_bytes, disk_bytes: at the peak, by kind; seconds: each resource, the step,
    the bottleneck; rates: of the machine.
    """

    model: str
    device: Device
    budgets: Budgets
    spec: StepSpec
    place: Placement
    device_bytes: Bytes
    host_bytes: Bytes
    seconds: Seconds
    rates: Rates
    disk_bytes: Bytes = field(default_factory=dict)

    @property
    def job(self) -> StepSpec:
        """The old name of `spec`."""
        warn_renamed("Plan.job", "Plan.spec")
        return self.spec

    @property
    def parameters(self) -> int:
        """Of the model."""
        return self.spec.config.parameters

    @property
    def streams(self) -> bool:
        """Whether anything crosses the link during a step."""
        return self.seconds.to_device > 0 or self.seconds.to_host > 0

    @property
    def device_peak(self) -> int:
        """Bytes on the device."""
        return total(self.device_bytes)

    @property
    def host_peak(self) -> int:
        """Bytes on the host."""
        return total(self.host_bytes)

    @property
    def bottleneck(self) -> str:
        """What a step waits for."""
        return self.seconds.bottleneck

    @property
    def tokens_per_second(self) -> float:
        """Of training; of evolve: tokens evaluated, over all members."""
        return self.spec.tokens / self.seconds.step

    @property
    def days_per_billion(self) -> float:
        """Days for 1e9 tokens."""
        return 1e9 / self.tokens_per_second / DAY

    @property
    def hidden_from(self) -> int:
        """Tokens per step from which on the link and the host are hidden; 0 if nothing streams."""
        return tokens_to_hide(self.spec, self.place, self.rates)

    def whole_run(self, total_tokens: int, price: float | None = None) -> WholeRun:
        """A training of so many tokens; `price` is that of an hour of all devices."""
        return whole_run(total_tokens, self.spec.tokens, self.seconds.step, price)

    def tables(self, larger: "Plan | None" = None) -> list[Table]:
        """For people: bytes, time; `larger` is a step that hides link and host, to propose."""
        return [memory_table(self), time_table(self, larger)]

    def record(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {
            "model": self.model,
            "parameters": self.parameters,
            "method": self.spec.method.name,
            "device": self.device.name,
            "devices": self.spec.devices,
            "device_budget": self.budgets.device,
            "host_budget": self.budgets.host,
            "tokens_per_step": self.spec.tokens,
            "micro_batch": self.spec.rows,
            "sequence": self.spec.sequence,
            "updates": self.place.mode,
            "layers": self.spec.config.layers,
            "layers_on_device": self.place.layers,
            "inputs_on_device": self.place.inputs,
            "device_bytes": self.device_bytes,
            "device_peak": self.device_peak,
            "host_bytes": self.host_bytes,
            "host_peak": self.host_peak,
            "layers_on_disk": self.place.disk,
            "disk_bytes": self.disk_bytes,
            "seconds": self.seconds._asdict(),
            "tokens_per_second": self.tokens_per_second,
            "days_per_billion_tokens": self.days_per_billion,
            "tokens_that_hide_the_link": self.hidden_from,
            "rates": dataclasses.asdict(self.rates),
        }


def memory_table(plan: Plan) -> Table:
    """Bytes per tier and kind."""
    name = f"memory of {title(plan)}"
    tiers = {on_each("device", plan.spec.devices): plan.device_bytes, "host": plan.host_bytes}
    if plan.disk_bytes:
        tiers["disk"] = plan.disk_bytes
    table = Table("", *tiers, title=name, title_justify="left", min_width=len(name))
    for column in table.columns[1:]:
        column.justify = "right"
    for kind in dict.fromkeys(kind for sizes in tiers.values() for kind in sizes):
        row = [sizes.get(kind, 0) for sizes in tiers.values()]
        table.add_row(kind, *(spelt(size) if size else "" for size in row))
    table.add_section()
    table.add_row("all", *(spelt(total(sizes)) for sizes in tiers.values()))
    disk = [spelt(plan.budgets.disk)] if plan.disk_bytes else []
    if plan.budgets.together is None:
        table.add_row("may use", spelt(plan.budgets.device), spelt(plan.budgets.host), *disk)
    else:
        table.add_row("may use together", spelt(plan.budgets.together), "", *disk)
    return table


def title(plan: Plan) -> str:
    """Model and method."""
    return f"{plan.model} by {plan.spec.method.name} on {plan.device.name}"


def time_table(plan: Plan, larger: Plan | None = None) -> Table:
    """What streams, what a step waits for, and how fast it goes."""
    spec, seconds, layers = plan.spec, plan.seconds, plan.spec.config.layers
    table = Table(show_header=False, title="a step", title_justify="left")
    table.add_row("parameters", _parameters(plan))
    table.add_row("tokens", _tokens(plan))
    table.add_row("how", UPDATES[plan.place.mode])
    if plan.streams:
        table.add_row("layers that stay", f"{plan.place.layers} of {layers}")
    if plan.place.disk:
        table.add_row("layers on the disk", f"{plan.place.disk} of {layers}")
    if spec.method.trains:
        table.add_row("saved inputs on the device", f"{plan.place.inputs} of {layers} layers")
    table.add_section()
    busy = (
        ("computing", seconds.compute),
        ("copying to the device", seconds.to_device),
        ("copying to the host", seconds.to_host),
        ("updating on the host", seconds.host_update),
        ("reading and writing the disk", seconds.disk),
        ("time not overlapped", seconds.fill),
    )
    for name, taken in busy:
        if taken:
            table.add_row(name, f"{taken:.3g} s")
    table.add_row("step", f"[bold]{seconds.step:.3g} s[/bold]")
    table.add_row("waits for", f"[bold]{plan.bottleneck}[/bold]")
    if plan.hidden_from:
        table.add_row("full overlap from", f"{plan.hidden_from:,} tokens per step")
    if larger is not None:
        speed = f"{larger.tokens_per_second:,.0f} tokens per second"
        table.add_row("proposed", f"--tokens-per-step {larger.spec.tokens}: {speed}")
    table.add_section()
    table.add_row("tokens per second", f"[bold]{plan.tokens_per_second:,.0f}[/bold]")
    table.add_row("days per billion tokens", f"{plan.days_per_billion:.3g}")
    executed = sum(work(spec)) / seconds.step / 1e12
    shown = f"{executed:,.0f}" if executed >= 100 else f"{executed:.3g}"
    table.add_row("executed", f"{shown} TFLOP/s; assumed: {plan.rates.source}")
    return table


def run_table(run: WholeRun) -> Table:
    """A whole training."""
    name = f"a training of {spelt_tokens(run.tokens)} tokens"
    table = Table(show_header=False, title=name, title_justify="left", min_width=len(name))
    table.add_row("steps", f"{run.steps:,}")
    table.add_row("days", f"[bold]{run.days:,.3g}[/bold]")
    if run.price is not None:
        table.add_row("price", f"[bold]{run.price:,.2f}[/bold]")
    return table


def spelt_tokens(tokens: int) -> str:
    """1.5B, 300M, 12,345."""
    for power, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if tokens >= power:
            return f"{tokens / power:.4g}{unit}"
    return f"{tokens:,}"


def _parameters(plan: Plan) -> str:
    active = plan.spec.config.active_parameters
    met = "" if active == plan.parameters else f", {billions(active)} of which a token meets"
    return f"{billions(plan.parameters)}{met}"


def _tokens(plan: Plan) -> str:
    spec = plan.spec
    of = f"{spec.parts} micro-batches of {spec.rows} x {spec.sequence:,}"
    return f"{spec.tokens:,} in {of}" if spec.parts > 1 else f"{spec.tokens:,} at once"


def billions(parameters: float) -> str:
    return f"{parameters / 1e9:.3g}B" if parameters >= 1e9 else f"{parameters / 1e6:.3g}M"
