"""`sr.plan`: what a machine can train, where everything lives and how fast it goes, beforehand.

    plan = sr.plan("llama-7b", device="24GiB", host="110GiB", tokens_per_step=16384)
    plan.device_bytes, plan.host_bytes      # by kind
    plan.tokens_per_second, plan.bottleneck
    rich.print(*plan.tables())

Bytes are counted over the shapes of the model. What a layer's computation needs beside them is
asked of the compiler. Nothing is allocated. Times are modelled (`step_time`) with the rates of a
card (`devices`) or with measured ones (`measured_rates`). If nothing fits, the error says what is
missing and the nearest change that fits.
"""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from springroll.errors import InputError, as_path, expect
from springroll.hub import no_gguf
from springroll.memory import spelt
from springroll.models.decoder import decoder
from springroll.models.decoder_config import DecoderConfig, named
from springroll.models.expert_stages import expert_stages
from springroll.planner.alternatives import largest_named
from springroll.planner.devices import Rates
from springroll.planner.footprint import Clip
from springroll.planner.methods import Dtype, Rounding
from springroll.planner.placement import least_device, least_host
from springroll.planner.plan_result import Plan
from springroll.planner.search import (
    SEQUENCE,
    TOKENS,
    Options,
    fastest_plan,
    micro_batches,
    options_of,
    step_spec,
)
from springroll.subspace.stored_basis import BasisBits

LESS_STATE = ("adamw-8bit", "adamw-4bit", "apollo-mini", "lowgrad", "evolve")
SHORTEST = 128  # tokens of a sequence that is worth training on


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
    basis_bits: BasisBits = 32,
    rank: int | None = None,
    dtype: Dtype = "bfloat16",
    rounding: Rounding = "split",
    depth: int = 3,
    experts_per_bundle: int | None = None,
    clip: Clip = "previous",
    link: str | int | None = None,
    rates: Rates | None = None,
    disk: str | int | None = None,
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
        basis_bits: 32, 16, 8 or 4 per number of the bases of subspaces.
        rank: of subspaces; by default a quarter of the hidden size.
        dtype: of weights and activations.
        rounding: of bfloat16 weights: "split" is an exact float32 master in two halves.
        depth: layers on the device at a time.
        experts_per_bundle: of a mixture, pass a layer as attention and then so many experts at a
            time; `depth` counts these.
        clip: "global" holds all gradients on the host until their norm is known.
        link: bytes per second each way, such as "25GB", in place of the card's.
        rates: measured ones, in place of a card's.
        disk: bytes of a fast disk for layers that host memory cannot hold; by default none.

    Raises:
        InputError: unknown names, tokens that do not divide, and a step that fits nowhere: the
            line says what it needs and the nearest that fits.
    """
    name, config = named_model(model, experts_per_bundle)
    options = options_of(
        device,
        host,
        link,
        rates,
        disk,
        tokens=tokens_per_step,
        sequence=sequence,
        micro_batch=micro_batch,
        method=method,
        state_bits=state_bits,
        basis_bits=basis_bits,
        rank=rank,
        dtype=dtype,
        rounding=rounding,
        depth=depth,
        experts_per_bundle=experts_per_bundle,
        clip=clip,
    )
    return plan_or_refuse(name, config, options)


def named_model(
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
    named_or_path = isinstance(model, str | os.PathLike)
    expect(named_or_path, "model", model, "a name such as 'llama-7b', a folder or a DecoderConfig")
    path = as_path(model, "model")
    if os.path.exists(path):  # a folder, or a file of weights
        from springroll.models.hf.files import read_config

        config = read_config(path)
        if not isinstance(config, DecoderConfig):
            raise InputError(f"{model} holds an RWKV-7; only decoders can be planned")
        return str(model), config
    if path.suffix == ".gguf":
        raise no_gguf(path)
    return str(model), named(str(model))


def plan_or_refuse(name: str, config: DecoderConfig, options: Options) -> Plan:
    """The fastest plan that fits.

    Raises:
        InputError: nothing fits; what is missing, and the nearest that fits.
    """
    best = fastest_plan(name, config, options)
    if best is None:
        raise InputError(refusal(name, config, options))
    return best


def refusal(name: str, config: DecoderConfig, options: Options) -> str:
    """One line: what is missing, and the nearest that fits."""
    spec = step_spec(config, options, micro_batches(options)[-1])
    device, budgets = least_device(spec), options.budgets
    device_too_small = device > budgets.device
    if device_too_small:
        message = f"{spelt(device)} of device memory for a layer at a time"
    else:
        message = f"{spelt(least_host(spec, budgets))} of host memory"
    have = spelt(budgets.device if device_too_small else budgets.host)
    message = f"{name} with {spec.method.name} needs {message}, {have} are given"
    at_once, state = less_at_once(options), less_state(options)
    changes = (*at_once, *state) if device_too_small else state
    for change, other in changes:
        if fastest_plan(name, config, other) is not None:
            return f"{message}; {change} fits"
    smaller = largest_named(options)
    if smaller is not None:
        return f"{message}; the largest model that fits is {smaller.model}"
    return f"{message}, and no named model fits; give more memory"


def less_at_once(options: Options) -> Iterator[tuple[str, Options]]:
    """Fewer tokens on the device, the smallest change first."""
    for tokens in (options.tokens // 2, options.tokens // 4, options.sequence):
        if options.sequence <= tokens < options.tokens and tokens % options.sequence == 0:
            change = {"tokens": tokens, "micro_batch": None}
            yield f"--tokens-per-step {tokens}", dataclasses.replace(options, **change)
    for sequence in (options.sequence // 2, options.sequence // 4):
        if sequence >= SHORTEST and options.tokens % sequence == 0:
            change = {"sequence": sequence, "micro_batch": None}
            yield f"--sequence {sequence}", dataclasses.replace(options, **change)


def less_state(options: Options) -> Iterator[tuple[str, Options]]:
    """Methods that keep less, the nearest to exact AdamW first."""
    for method in LESS_STATE:
        if method != options.method:
            yield f"--method {method}", options.by(method)
