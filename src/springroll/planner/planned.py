"""A step that fits on a machine: where everything lives, and how long it takes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from springroll.models.decoder_config import DecoderConfig
from springroll.planner.devices import Device
from springroll.planner.footprint import (
    Bytes,
    Clip,
    Job,
    Placement,
    device_bytes,
    host_bytes,
    total,
)
from springroll.planner.methods import Dtype, Rounding, recipe
from springroll.planner.placement import Budgets, Choice, choose
from springroll.planner.rates import Rates
from springroll.planner.step_time import Seconds, tokens_to_hide
from springroll.planner.working_set import WorkingSet, expert_working_set, working_set

if TYPE_CHECKING:
    from rich.table import Table

TOKENS, SEQUENCE = 16384, 1024
TOGETHER = 4096  # tokens of a micro-batch where more would fit: enough to keep a card busy
DAY = 86400.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to plan for beside the model; `plan` explains them."""

    device: Device
    budgets: Budgets
    rates: Rates
    tokens: int = TOKENS
    sequence: int = SEQUENCE
    micro_batch: int | None = None
    method: str = "adamw"
    state_bits: int = 32
    rank: int | None = None
    dtype: Dtype = "bfloat16"
    rounding: Rounding = "split"
    depth: int = 3
    clip: Clip = "previous"
    experts_per_bundle: int | None = None


@dataclass(frozen=True)
class Plan:
    """A step that fits: where everything lives, and how long it takes.

    model: its name; device: what it is planned for; budgets: bytes that may be used;
    job: tokens, micro-batches, bytes of the method; place: what stays on the device;
    device_bytes, host_bytes: at the peak, by kind; seconds: each resource, the step, the
    bottleneck; rates: of the machine.
    """

    model: str
    device: Device
    budgets: Budgets
    job: Job
    place: Placement
    device_bytes: Bytes
    host_bytes: Bytes
    seconds: Seconds
    rates: Rates

    @property
    def parameters(self) -> int:
        """Of the model."""
        return self.job.config.parameters

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
        return self.job.tokens / self.seconds.step

    @property
    def days_per_billion(self) -> float:
        """Days for 1e9 tokens."""
        return 1e9 / self.tokens_per_second / DAY

    @property
    def hidden_from(self) -> int:
        """Tokens per step from which on the link and the host are hidden; 0 if nothing streams."""
        return tokens_to_hide(self.job, self.place, self.rates)

    def tables(self) -> list[Table]:
        """For people: bytes, time."""
        from springroll.planner.plan_table import memory_table, time_table

        return [memory_table(self), time_table(self)]

    def record(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {
            "model": self.model,
            "parameters": self.parameters,
            "method": self.job.recipe.name,
            "device": self.device.name,
            "device_budget": self.budgets.device,
            "host_budget": self.budgets.host,
            "tokens_per_step": self.job.tokens,
            "micro_batch": self.job.rows,
            "sequence": self.job.sequence,
            "updates": self.place.mode,
            "layers": self.job.config.layers,
            "layers_on_device": self.place.layers,
            "inputs_on_device": self.place.inputs,
            "device_bytes": self.device_bytes,
            "device_peak": self.device_peak,
            "host_bytes": self.host_bytes,
            "host_peak": self.host_peak,
            "seconds": self.seconds._asdict(),
            "tokens_per_second": self.tokens_per_second,
            "days_per_billion_tokens": self.days_per_billion,
            "tokens_that_hide_the_link": self.hidden_from,
            "rates": dataclasses.asdict(self.rates),
        }


def planned(name: str, config: DecoderConfig, options: Options) -> Plan | None:
    """The fastest step that fits, with the largest micro-batch that lets it; None if none does."""
    free = job_of(config, options, 1, working=WorkingSet(0, 0))
    if choose(free, options.rates, options.budgets) is None:
        return None  # not even if computing took no memory: no need to ask the compiler
    for rows in micro_batches(options):
        job = job_of(config, options, rows)
        choice = choose(job, options.rates, options.budgets)
        if choice is not None:
            return _plan(name, job, choice, options)
    return None


def micro_batches(options: Options) -> list[int]:
    """Sequences that may be computed together, the most first."""
    if options.micro_batch:
        return [options.micro_batch]
    rows = options.tokens // options.sequence
    most = max(1, TOGETHER // options.sequence)
    largest = max(n for n in range(1, min(rows, most) + 1) if rows % n == 0)
    return sorted({largest, 1}, reverse=True)


def job_of(
    config: DecoderConfig, options: Options, rows: int, working: WorkingSet | None = None
) -> Job:
    """The step of these options; asks the compiler for the working set if it is not given."""
    method = recipe(
        config,
        options.method,
        dtype=options.dtype,
        state_bits=options.state_bits,
        rank=options.rank,
        rounding=options.rounding,
    )
    together = options.experts_per_bundle
    if not together or not config.experts or config.experts % together or not method.cuts_layers:
        together = None
    if working is None:
        shape = config, rows, options.sequence, _compiled_dtype(options)
        if together:
            working = expert_working_set(*shape, together)
        else:
            working = working_set(*shape, trains=method.trains)
    return Job(
        config=config,
        recipe=method,
        tokens=options.tokens,
        rows=rows,
        sequence=options.sequence,
        working=working,
        depth=options.depth,
        clip=options.clip,
        experts_per_bundle=together,
    )


def _plan(name: str, job: Job, choice: Choice, options: Options) -> Plan:
    return Plan(
        model=name,
        device=options.device,
        budgets=options.budgets,
        job=job,
        place=choice.place,
        device_bytes=_some(device_bytes(job, choice.place)),
        host_bytes=_some(host_bytes(job, choice.place)),
        seconds=choice.seconds,
        rates=options.rates,
    )


def _some(found: Bytes) -> Bytes:
    return {kind: size for kind, size in found.items() if size}


def _compiled_dtype(options: Options) -> str:
    """A CPU's compiler has no bfloat16 of its own; see `working_set`."""
    import jax

    foreign = not options.device.here and jax.default_backend() == "cpu"
    return "float32" if foreign else options.dtype
