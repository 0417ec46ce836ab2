"""What is said of a step that fits nowhere: which part is missing room, and what would fit."""

import dataclasses
from collections.abc import Iterator

from springroll.memory import spelt
from springroll.models.decoder_config import DecoderConfig
from springroll.planner.alternatives import largest_named
from springroll.planner.footprint import StepSpec
from springroll.planner.placement import Budgets, Shortage, shortages
from springroll.planner.search import Options, fastest_plan, micro_batches, step_spec

LESS_STATE = ("adamw-8bit", "adamw-4bit", "apollo-mini", "lowgrad", "evolve")
SHORTEST = 128  # tokens of a sequence that is worth training on


def refusal(name: str, config: DecoderConfig, options: Options) -> str:
    """One line: what is missing, which part is largest, and the smallest change that fits."""
    spec = step_spec(config, options, micro_batches(options)[-1])
    short = shortages(spec, options.budgets)
    needed = " and ".join(
        f"{spelt(one.needed)} of {one.tier}, {spelt(one.given)} are given (the largest part is "
        f"{one.part}, {spelt(one.size)})"
        for one in short
    )
    message = f"{name} with {spec.method.name} needs {needed}"
    more = " and ".join(f"{spelt(one.missing)} more {one.tier.split(' for ')[0]}" for one in short)
    more += disk_instead(spec, options.budgets, short)
    for change, other in changes(config, options):
        if fastest_plan(name, config, other) is not None:
            return f"{message}; {change} fits, and so would {more}"
    smaller = largest_named(options)
    if smaller is not None:
        return f"{message}; it takes {more}; the largest model that fits is {smaller.model}"
    return f"{message}, and no named model fits; give more memory"


def disk_instead(spec: StepSpec, budgets: Budgets, short: list[Shortage]) -> str:
    """The disk that would do in place of more host memory, where none was given."""
    if budgets.disk or [one.tier for one in short] != ["host memory"]:
        return ""
    lacking = shortages(spec, budgets._replace(disk=1))
    enough = [one.tier for one in lacking] == ["disk"]
    return f", or {spelt(lacking[0].needed)} of disk (--disk)" if enough else ""


def changes(config: DecoderConfig, options: Options) -> Iterator[tuple[str, Options]]:
    """Options that take less memory, the smallest change first."""
    change = lambda **new: dataclasses.replace(options, **new)
    if options.clip == "global":
        yield "--clip-by previous", change(clip="previous")
    for depth in range(options.depth - 1, 0, -1):
        yield f"--depth {depth}", change(depth=depth)
    if options.micro_batch and options.micro_batch > 1:
        yield "--batch 1", change(micro_batch=1)
    together = options.experts_per_bundle or config.experts
    for few in (8, 1):
        if few < together and config.experts % few == 0:
            yield f"--experts-per-bundle {few}", change(experts_per_bundle=few)
    for tokens in (options.tokens // 2, options.tokens // 4, options.sequence):
        if options.sequence <= tokens < options.tokens and tokens % options.sequence == 0:
            yield f"--tokens-per-step {tokens}", change(tokens=tokens, micro_batch=None)
    for sequence in (options.sequence // 2, options.sequence // 4):
        if sequence >= SHORTEST and options.tokens % sequence == 0:
            yield f"--sequence {sequence}", change(sequence=sequence, micro_batch=None)
    if options.method.startswith("lora"):
        for bits in (8, 4):
            if bits < (options.base_bits or 16):
                yield f"--base-bits {bits}", change(base_bits=bits)
    for method in LESS_STATE:
        if method != options.method:
            yield f"--method {method}", options.by(method)
