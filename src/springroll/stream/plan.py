"""`sr.plan`: what a machine can train, where everything lives and how fast it goes, beforehand.

    plan = sr.plan("llama-7b", device="24GiB", host="110GiB", tokens_per_step=16384)
    plan.device_bytes, plan.host_bytes      # by kind
    plan.tokens_per_second, plan.bottleneck
    rich.print(*plan.tables())

Bytes are counted over the shapes of the model; what a layer's computation needs beside them is
asked of the compiler. Nothing is allocated. Times are modelled (`step_time`) with the rates of a
card (`devices`, `rates`) or with measured ones (`measured`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from springroll.errors import InputError
from springroll.models.decoder_config import DecoderConfig, named
from springroll.stream.budget import host_memory, parse_bytes, spelt
from springroll.stream.devices import Device, device_of
from springroll.stream.footprint import Bytes, Clip, Job, Placement, device_bytes, host_bytes, total
from springroll.stream.methods import Dtype, Rounding, recipe
from springroll.stream.placement import Budgets, Choice, choose, least_device, least_host
from springroll.stream.rates import Rates, assumed
from springroll.stream.step_time import Seconds, tokens_to_hide
from springroll.stream.working_set import WorkingSet, working_set

if TYPE_CHECKING:
    from rich.table import Table

TOKENS, SEQUENCE = 16384, 1024
TOGETHER = 4096  # tokens of a micro-batch where more would fit: enough to keep a card busy
DAY = 86400.0


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
        from springroll.stream.plan_table import memory_table, time_table

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


def plan(
    model: str | Path | DecoderConfig,
    *,
    device: str | int | None = None,
    host: str | int | None = None,
    tokens_per_step: int = TOKENS,
    sequence: int = SEQUENCE,
    micro_batch: int | None = None,
    method: str = "adamw",
    state_bits: int = 32,
    rank: int | None = None,
    dtype: Dtype = "bfloat16",
    rounding: Rounding = "split",
    depth: int = 3,
    clip: Clip = "previous",
    link: str | int | None = None,
    rates: Rates | None = None,
) -> Plan:
    """How a step of training `model` runs on a machine; seconds, most of it the compiler's.

    Args:
        model: a name (`models.decoder_config.CONFIGS`), a configuration or a Hugging Face folder.
        device: a card ("RTX 3080"), bytes ("24GiB"), or the one at hand.
        host: bytes of host memory that may be used; by default what this machine has left.
        tokens_per_step: per optimizer step; for evolve of all members of a generation.
        sequence: tokens of a sequence.
        micro_batch: sequences computed together; by default about 4,096 tokens, fewer if those do
            not fit. Link traffic does not depend on it.
        method: one of `methods.METHODS`, also with coded state: "adamw-8bit".
        state_bits: 32, 8 or 4 per number of the optimizer's moments.
        rank: of subspaces; by default a quarter of the hidden size.
        dtype: of weights and activations.
        rounding: of bfloat16 weights: "split" is an exact float32 master in two halves.
        depth: layers on the device at a time.
        clip: "exact" holds all gradients on the host before the first update.
        link: bytes per second each way, such as "25GB", in place of the card's.
        rates: measured ones, in place of a card's.

    Raises:
        InputError: unknown names, tokens that do not divide, and a step that fits nowhere: the
            line says what it needs and the nearest that fits.
    """
    name, config = found_model(model)
    options = options_of(
        device,
        host,
        link,
        rates,
        tokens=tokens_per_step,
        sequence=sequence,
        micro_batch=micro_batch,
        method=method,
        state_bits=state_bits,
        rank=rank,
        dtype=dtype,
        rounding=rounding,
        depth=depth,
        clip=clip,
    )
    return planned_or_refused(name, config, options)


def options_of(
    device: str | int | None,
    host: str | int | None,
    link: str | int | None,
    rates: Rates | None,
    **rest: Any,
) -> Options:
    """Options with the device found, budgets in bytes and rates assumed where not given."""
    on = device_of(device)
    return checked(
        Options(
            device=on,
            budgets=_budgets(on, host),
            rates=rates or _rates(on, _bytes(link, "link")),
            **rest,
        )
    )


def checked(options: Options) -> Options:
    """The same.

    Raises:
        InputError: a number below 1, tokens that do not divide into micro-batches.
    """
    for name in ("tokens", "sequence", "depth", "micro_batch", "rank"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; expected at least 1")
    if options.tokens % options.sequence:
        near = max(1, round(options.tokens / options.sequence)) * options.sequence
        raise InputError(
            f"{options.tokens} tokens per step are no whole number of sequences of "
            f"{options.sequence}; take {near}, or another --sequence"
        )
    rows = options.tokens // options.sequence
    if options.micro_batch and rows % options.micro_batch:
        raise InputError(
            f"{rows} sequences per step do not divide into micro-batches of "
            f"{options.micro_batch}; take a divisor of {rows}"
        )
    if options.clip not in ("exact", "previous", "layer"):
        raise InputError(f"clip is {options.clip!r}; expected exact, previous or layer")
    return options


def found_model(model: str | Path | DecoderConfig) -> tuple[str, DecoderConfig]:
    """A name for people, and the shape.

    Raises:
        InputError: no such name, or a folder without a model.
    """
    if isinstance(model, DecoderConfig):
        return f"a decoder of {model.parameters / 1e9:.3g}B parameters", model
    if Path(model).is_dir():
        from springroll.models.hf import read_config

        return str(model), read_config(model)
    return str(model), named(str(model))


def planned(name: str, config: DecoderConfig, options: Options) -> Plan | None:
    """The fastest step that fits, with the largest micro-batch that lets it; None if none does."""
    for rows in micro_batches(options):
        job = job_of(config, options, rows)
        choice = choose(job, options.rates, options.budgets)
        if choice is not None:
            return _plan(name, job, choice, options)
    return None


def planned_or_refused(name: str, config: DecoderConfig, options: Options) -> Plan:
    """`planned`.

    Raises:
        InputError: nothing fits; what is missing, and the nearest that fits.
    """
    found = planned(name, config, options)
    if found is None:
        raise InputError(refusal(name, config, options))
    return found


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
    if working is None:
        dtype = _compiled_dtype(options)
        working = working_set(config, rows, options.sequence, dtype, trains=method.trains)
    return Job(
        config=config,
        recipe=method,
        tokens=options.tokens,
        rows=rows,
        sequence=options.sequence,
        working=working,
        depth=options.depth,
        clip=options.clip,
    )


def refusal(name: str, config: DecoderConfig, options: Options) -> str:
    """One line: what is missing, and the nearest that fits."""
    job = job_of(config, options, micro_batches(options)[-1])
    device, budgets = least_device(job), options.budgets
    if device > budgets.device:
        need = f"{spelt(device)} of device memory for one layer at a time"
        have = budgets.device
    else:
        need = f"{spelt(least_host(job, budgets))} of host memory"
        have = budgets.host
    said = f"{name} with {job.recipe.name} needs {need}, {spelt(have)} are given"
    for change, other in nearest(options):
        if planned(name, config, other) is not None:
            return f"{said}; {change} fits"
    from springroll.stream.largest import largest_named

    smaller = largest_named(options)
    if smaller is not None:
        return f"{said}; the largest model that fits is {smaller.model}"
    return f"{said}; no named model fits, give more memory"


def nearest(options: Options) -> Iterator[tuple[str, Options]]:
    """Changes that need less memory, the smallest change first."""
    for tokens in (options.tokens // 2, options.tokens // 4, options.sequence):
        if options.sequence <= tokens < options.tokens and tokens % options.sequence == 0:
            change = {"tokens": tokens, "micro_batch": None}
            yield f"--tokens-per-step {tokens}", dataclasses.replace(options, **change)
    less: dict[str, Any] = {"state_bits": 32, "rank": None}
    for method in ("adamw-8bit", "adamw-4bit", "apollo-mini", "lowgrad", "evolve"):
        if method != options.method:
            yield f"--method {method}", dataclasses.replace(options, method=method, **less)
    half = options.sequence // 2
    if half >= 128:
        change = {"tokens": half, "sequence": half, "micro_batch": 1, "method": "adamw-8bit"}
        yield (
            f"--sequence {half} --tokens-per-step {half} --method adamw-8bit",
            dataclasses.replace(options, **change, **less),
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


def _budgets(device: Device, host: str | int | None) -> Budgets:
    given = _bytes(host, "host")
    if device.unified:
        return Budgets(device.memory, min(given or device.memory, device.memory), device.memory)
    return Budgets(device.memory, _host_memory() if given is None else given)


def _host_memory() -> int:
    found = host_memory()
    if found is None:
        raise InputError("this system does not tell how much memory it has; give host, as 64GiB")
    return found


def _rates(device: Device, link: int | None) -> Rates:
    if device.card is not None:
        return assumed(device.card, link)
    from springroll.stream.measured import quickly

    return quickly()


def _bytes(given: str | int | None, name: str) -> int | None:
    return parse_bytes(given, name) if isinstance(given, str) else given


def _compiled_dtype(options: Options) -> str:
    """A CPU's compiler has no bfloat16 of its own; see `working_set`."""
    import jax

    foreign = not options.device.here and jax.default_backend() == "cpu"
    return "float32" if foreign else options.dtype
