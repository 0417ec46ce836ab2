"""What to say where nothing fits: what is missing, and the nearest that does."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from springroll.errors import InputError
from springroll.memory import spelt
from springroll.models.decoder_config import DecoderConfig
from springroll.planner.placement import least_device, least_host
from springroll.planner.planned import Options, Plan, job_of, micro_batches, planned

LESS_STATE = ("adamw-8bit", "adamw-4bit", "apollo-mini", "lowgrad", "evolve")
SHORTEST = 128  # tokens of a sequence that is worth training on


def planned_or_refused(name: str, config: DecoderConfig, options: Options) -> Plan:
    """`planned`.

    Raises:
        InputError: nothing fits; what is missing, and the nearest that fits.
    """
    found = planned(name, config, options)
    if found is None:
        raise InputError(refusal(name, config, options))
    return found


def refusal(name: str, config: DecoderConfig, options: Options) -> str:
    """One line: what is missing, and the nearest that fits."""
    job = job_of(config, options, micro_batches(options)[-1])
    device, budgets = least_device(job), options.budgets
    small = device > budgets.device
    if small:
        said = f"{spelt(device)} of device memory for a layer at a time"
    else:
        said = f"{spelt(least_host(job, budgets))} of host memory"
    have = spelt(budgets.device if small else budgets.host)
    said = f"{name} with {job.recipe.name} needs {said}, {have} are given"
    at_once, state = less_at_once(options), less_state(options)
    changes = (*at_once, *state) if small else state
    for change, other in changes:
        if planned(name, config, other) is not None:
            return f"{said}; {change} fits"
    from springroll.planner.largest import largest_named

    smaller = largest_named(options)
    if smaller is not None:
        return f"{said}; the largest model that fits is {smaller.model}"
    return f"{said}, and no named model fits; give more memory"


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
            other = dataclasses.replace(options, method=method, state_bits=32)
            yield f"--method {method}", other
