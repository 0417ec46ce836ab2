"""What is asked of a plan, and the search for the fastest step that fits."""

import dataclasses
from dataclasses import dataclass
from typing import Any, get_args

from springroll.errors import InputError, kind_of
from springroll.memory import host_memory
from springroll.models.decoder_config import DecoderConfig
from springroll.planner.devices import Device, Rates, assumed_rates, bytes_of, device_of
from springroll.planner.footprint import (
    Bytes,
    Clip,
    StepSpec,
    device_bytes,
    disk_bytes,
    host_bytes,
)
from springroll.planner.methods import (
    Ask,
    BaseBits,
    Dtype,
    Rounding,
    least_state,
    method_bytes,
    optimizer_state,
    stores_bases,
)
from springroll.planner.placement import Budgets, Choice, choose, placements
from springroll.planner.plan_result import Plan
from springroll.planner.working_set import WorkingSet, expert_working_set, working_set
from springroll.ranges import COUNT, check_number
from springroll.subspace.stored_basis import BasisBits

TOKENS, SEQUENCE = 16384, 1024
MICRO_BATCH_TOKENS = 4096  # where more would fit: enough to keep a card busy


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to plan for beside the model; `plan` explains the fields.

    Raises:
        InputError: a number is below 1, or the tokens do not divide into micro-batches.
    """

    device: Device
    budgets: Budgets
    rates: Rates
    tokens: int = TOKENS
    sequence: int = SEQUENCE
    micro_batch: int | None = None
    method: str = "adamw"
    state_bits: int = 32
    basis_bits: BasisBits = 32
    rank: int | None = None
    dtype: Dtype = "bfloat16"
    rounding: Rounding = "split"
    depth: int = 3
    clip: Clip = "previous"
    experts_per_bundle: int | None = None
    base_bits: BaseBits | None = None

    def by(self, method: str) -> "Options":
        """The same for another method, in the spelling that names its state."""
        bits = self.basis_bits if stores_bases(method) else 32
        base = self.base_bits if method.startswith("lora") else None
        change = {"state_bits": 32, "basis_bits": bits, "base_bits": base}
        return dataclasses.replace(self, method=method, **change)

    def __post_init__(self) -> None:
        for name in ("tokens", "sequence", "depth", "micro_batch", "rank"):
            if getattr(self, name) is not None or name in ("tokens", "sequence", "depth"):
                check_number(name, getattr(self, name), int, COUNT)
        if self.tokens % self.sequence:
            near = max(1, round(self.tokens / self.sequence)) * self.sequence
            raise InputError(
                f"{self.tokens} tokens per step are no whole number of sequences of "
                f"{self.sequence}; take {near}, or another --sequence"
            )
        rows = self.tokens // self.sequence
        if self.micro_batch and rows % self.micro_batch:
            raise InputError(
                f"{rows} sequences per step do not divide into micro-batches of "
                f"{self.micro_batch}; take a divisor of {rows}"
            )
        count = self.device.count
        for where, number in (("per step", rows), ("in a micro-batch", self.micro_batch)):
            if number and number % count:
                tokens = -(-rows // count) * count * self.sequence
                raise InputError(
                    f"{number} sequences {where} do not divide over {count} devices; take a "
                    f"multiple of {count} (--tokens-per-step {tokens})"
                )
        if not isinstance(self.rates, Rates):
            raise InputError(f"rates is {kind_of(self.rates)}; expected Rates, as of measure_rates")
        if self.clip not in get_args(Clip):
            raise InputError(f"clip is {self.clip!r}; expected one of {', '.join(get_args(Clip))}")


def fastest_plan(name: str, config: DecoderConfig, options: Options) -> Plan | None:
    """The fastest step that fits, with the largest micro-batch that lets it; None if none does."""
    # Most models fit not even without the state of the optimizer, or if computing took no memory:
    # of these nothing is traced.
    for ask in (least_state, optimizer_state):
        free = step_spec(config, options, options.device.count, WorkingSet(0, 0), ask)
        if not any(True for _ in placements(free, options.budgets)):
            return None
    for rows in micro_batches(options):
        spec = step_spec(config, options, rows)
        choice = choose(spec, options.rates, options.budgets)
        if choice is not None:
            return _plan(name, spec, choice, options)
    return None


def larger_step(name: str, config: DecoderConfig, options: Options, plan: Plan) -> Plan | None:
    """A plan with so many tokens per step that link and host are hidden; None where they are, or
    where no such step fits. The tokens are doubled, so that they still divide."""
    if plan.hidden_from <= options.tokens:
        return None
    tokens = options.tokens
    while tokens < plan.hidden_from:
        tokens *= 2
    for _ in range(3):  # what is saved for more tokens crosses the link as well
        found = fastest_plan(name, config, dataclasses.replace(options, tokens=tokens))
        if found is None or found.hidden_from <= tokens:
            return found
        tokens *= 2
    return None


def micro_batches(options: Options) -> list[int]:
    """Sequences that may be computed together, on all devices, the most first."""
    if options.micro_batch:
        return [options.micro_batch]
    count = options.device.count
    rows = options.tokens // options.sequence // count  # of each device
    most = max(1, MICRO_BATCH_TOKENS // options.sequence)
    largest = max(n for n in range(1, min(rows, most) + 1) if rows % n == 0)
    return sorted({largest * count, count}, reverse=True)


def step_spec(
    config: DecoderConfig,
    options: Options,
    rows: int,
    working: WorkingSet | None = None,
    ask: Ask = optimizer_state,
) -> StepSpec:
    """The step of these options; asks the compiler for the working set if it is not given, and
    `ask` for the state of the optimizer."""
    method = method_bytes(
        config,
        options.method,
        dtype=options.dtype,
        state_bits=options.state_bits,
        basis_bits=options.basis_bits,
        rank=options.rank,
        rounding=options.rounding,
        base_bits=options.base_bits,
        ask=ask,
    )
    together = options.experts_per_bundle
    if not together or not config.experts or config.experts % together or not method.cuts_layers:
        together = None
    if working is None:
        # The experts of a mixture are computed for all tokens on every device.
        share = rows if config.experts else rows // options.device.count
        shape, platform = (config, share, options.sequence, options.dtype), options.device.platform
        if together:
            working = expert_working_set(*shape, together, platform=platform)
        else:
            working = working_set(*shape, trains=method.trains, platform=platform)
    return StepSpec(
        config=config,
        method=method,
        tokens=options.tokens,
        rows=rows,
        sequence=options.sequence,
        working=working,
        depth=options.depth,
        clip=options.clip,
        experts_per_bundle=together,
        devices=options.device.count,
        platform=options.device.platform,
    )


def _plan(name: str, spec: StepSpec, choice: Choice, options: Options) -> Plan:
    return Plan(
        model=name,
        device=options.device,
        budgets=options.budgets,
        spec=spec,
        place=choice.place,
        device_bytes=_nonzero(device_bytes(spec, choice.place)),
        host_bytes=_nonzero(host_bytes(spec, choice.place)),
        disk_bytes=_nonzero(disk_bytes(spec, choice.place)),
        seconds=choice.seconds,
        rates=options.rates,
    )


def _nonzero(sizes: Bytes) -> Bytes:
    return {kind: size for kind, size in sizes.items() if size}


def options_of(
    device: str | int | None,
    host: str | int | None,
    link: str | int | None,
    rates: Rates | None,
    disk: str | int | None = None,
    **rest: Any,
) -> Options:
    """Options with the device found, budgets in bytes and rates assumed where not given."""
    on = device_of(device)
    return Options(
        device=on,
        budgets=_budgets(on, host)._replace(disk=_bytes(disk, "disk") or 0),
        rates=_rates(on, _bytes(link, "link"), rest.get("dtype")) if rates is None else rates,
        **rest,
    )


def _budgets(device: Device, host: str | int | None) -> Budgets:
    given = _bytes(host, "host")
    if device.unified:
        return Budgets(device.memory, min(given or device.memory, device.memory), device.memory)
    return Budgets(device.memory, _host_memory() if given is None else given)


def _host_memory() -> int:
    free = host_memory()
    if free is None:
        raise InputError("this system does not tell how much memory it has; give host, as 64GiB")
    return free


def _rates(device: Device, link: int | None, dtype: Dtype | None) -> Rates:
    if device.card is not None:
        return assumed_rates(device.card, link, dtype or "bfloat16")
    from springroll.planner.measured_rates import quick_rates

    return quick_rates()


def _bytes(given: str | int | None, name: str) -> int | None:
    return None if given is None else bytes_of(given, name)
