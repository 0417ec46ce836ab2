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

from pathlib import Path
from typing import Any, get_args

from springroll.errors import InputError
from springroll.memory import host_memory, parse_bytes
from springroll.models.decoder import decoder
from springroll.models.decoder_config import DecoderConfig, named
from springroll.models.expert_stages import expert_stages
from springroll.planner.devices import Device, device_of
from springroll.planner.footprint import Clip
from springroll.planner.methods import Dtype, Rounding
from springroll.planner.placement import Budgets
from springroll.planner.planned import SEQUENCE, TOKENS, Options, Plan
from springroll.planner.rates import Rates, assumed
from springroll.planner.refusal import planned_or_refused


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
    experts_per_bundle: int | None = None,
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
        experts_per_bundle: of a mixture, pass a layer as attention and then so many experts at a
            time; `depth` counts these.
        clip: "global" holds all gradients on the host until their norm is known.
        link: bytes per second each way, such as "25GB", in place of the card's.
        rates: measured ones, in place of a card's.

    Raises:
        InputError: unknown names, tokens that do not divide, and a step that fits nowhere: the
            line says what it needs and the nearest that fits.
    """
    name, config = found_model(model, experts_per_bundle)
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
        experts_per_bundle=experts_per_bundle,
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
    if options.clip not in get_args(Clip):
        raise InputError(f"clip is {options.clip!r}; expected one of {', '.join(get_args(Clip))}")
    return options


def found_model(
    model: str | Path | DecoderConfig, experts_per_bundle: int | None = None
) -> tuple[str, DecoderConfig]:
    """A name for people, and the shape.

    Raises:
        InputError: no such name, a folder without a model, or one whose experts cannot pass so.
    """
    name, config = _found_model(model)
    if experts_per_bundle is not None:
        expert_stages(decoder(config), experts_per_bundle)
    return name, config


def _found_model(model: str | Path | DecoderConfig) -> tuple[str, DecoderConfig]:
    if isinstance(model, DecoderConfig):
        return f"a decoder of {model.parameters / 1e9:.3g}B parameters", model
    if Path(model).is_dir():
        from springroll.models.hf.load import read_config

        return str(model), read_config(model)
    return str(model), named(str(model))


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
    from springroll.planner.measured import quickly

    return quickly()


def _bytes(given: str | int | None, name: str) -> int | None:
    return parse_bytes(given, name) if isinstance(given, str) else given
