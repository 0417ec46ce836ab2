"""`springroll plan [MODEL]`: what a machine can train, how and how fast, beforehand."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import tyro

from springroll.cli.options import parse
from springroll.errors import InputError, nearest
from springroll.run.options import COUNT, check_ranges, option

WIDE = 120  # columns where nothing says how many there are


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Where weights, state and activations of a training step live, and how long the step takes;
    with `--method finetune`, what a generation of `springroll finetune` needs.

    Without a model: the largest that this machine can train, by every method. Nothing is
    allocated. Exit code 2 where nothing fits, with the nearest that does.

      springroll plan --device "RTX 3080" --host-memory 64GB
      springroll plan gpt-oss-120b --device H200 --host-memory 1.5TB
      springroll plan llama-7b --device 24GiB --host-memory 110GiB --method adamw-8bit
      springroll plan qwen2.5-7b --device "RTX 4090" --method finetune --pop-size 64
    """

    model: Annotated[str | None, tyro.conf.Positional] = None
    """A name such as `llama-7b`, or a Hugging Face folder; with `--method finetune` all that
    `springroll finetune --model` takes."""
    device: str = "auto"
    """A card, its memory, or `auto` for the one at hand."""
    host_memory: str | None = option(None, memory=True, formerly="host")
    """Host memory that may be used, such as 64GB; default: what this machine has left."""
    disk: str | None = option(None, memory=True)
    """Space of a fast disk, such as 1TB, for layers that host memory cannot hold; default: none."""
    tokens_per_step: int = option(16384, COUNT)
    """Tokens per optimizer step; of `evolve`, of all members of a generation."""
    sequence: int = option(1024, COUNT)
    """Tokens per sequence."""
    batch: int | None = option(None, COUNT, formerly="micro_batch")
    """Sequences per micro-batch; default: about 4,096 tokens of them, or what fits."""
    method: str = "adamw"
    """An optimizer of `springroll train` (adamw, muon, galore, fira, apollo, apollo-mini, lowgrad),
    sgd or evolve; with -8bit or -4bit behind it the optimizer's state is kept in so many bits. Or
    `finetune`."""
    rank: int | None = option(None, COUNT)
    """Rank of subspaces, default: a quarter of the hidden size; of perturbations, default: 1."""
    basis_bits: Literal[32, 16, 8, 4] = 32
    """Bits per number of the bases of subspaces (`galore`, `fira`, `lowgrad`)."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of weights and activations."""
    rounding: Literal["split", "stochastic"] = "split"
    """Rounding of bfloat16 weights: `split` holds an exact float32 in two halves, `stochastic`
    rounds at random."""
    clip_by: Literal["none", "global", "previous", "layer"] = option("previous", formerly="clip")
    """Norm that clipping goes by: that of the whole gradient, for which gradients wait on the host;
    that of the step before; each layer's own; or `none` for no clipping."""
    depth: int = option(3, COUNT)
    """Streamed layers on the device at a time."""
    experts_per_bundle: int | None = option(None, COUNT)
    """Experts per transfer of a mixture of experts: a layer then passes as attention and as groups
    of so many experts. Default: whole layers."""
    link: str | None = None
    """Bytes per second of the link each way, such as 25GB; default: that of the card."""
    pop_size: int = option(256, COUNT)
    """Members of a generation (`finetune` only)."""
    prompts: int = option(32, COUNT)
    """Problems per generation (`finetune` only)."""
    prompt_tokens: int = option(128, COUNT)
    """Tokens of a prompt (`finetune` only)."""
    max_tokens: int = option(64, COUNT)
    """Largest number of tokens of an answer (`finetune` only)."""
    weights: Literal["float32", "bfloat16", "int8"] = "bfloat16"
    """Type in which weights are held (`finetune` only)."""
    json: bool = False
    """Print one JSON object in place of tables."""

    def __post_init__(self) -> None:
        check_ranges(self)


def run(argv: Sequence[str]) -> int:
    """Print the plan of a model, or what the machine can train."""
    options = parse(PlanOptions, argv, prog="springroll plan")
    check_method(options)
    if options.method == "finetune":
        return finetune(options)

    from springroll.planner.alternatives import (
        alternatives,
        alternatives_table,
        capacity,
        capacity_table,
    )
    from springroll.planner.plan import named_model, options_of, plan_or_refuse

    asked = options_of(
        options.device,
        options.host_memory,
        options.link,
        None,
        options.disk,
        tokens=options.tokens_per_step,
        sequence=options.sequence,
        micro_batch=options.batch,
        method=options.method,
        rank=options.rank,
        basis_bits=options.basis_bits,
        dtype=options.dtype,
        rounding=options.rounding,
        depth=options.depth,
        experts_per_bundle=options.experts_per_bundle,
        clip=options.clip_by,
    )
    if options.model is None:
        ways = capacity(asked)
        show([capacity_table(ways)], [way.record() for way in ways], options.json)
        return 0
    name, config = named_model(options.model, options.experts_per_bundle)
    plan = plan_or_refuse(name, config, asked)
    others = alternatives(name, config, asked)
    record = plan.record() | {"alternatives": [way.record() for way in others]}
    show([*plan.tables(), alternatives_table(others)], record, options.json)
    return 0


BOTH = ("model", "device", "method", "rank", "json")
FINETUNE = ("pop_size", "prompts", "prompt_tokens", "max_tokens", "weights")


def check_method(options: PlanOptions) -> None:
    """Refuse options of the other kind of plan, and what is nearly `finetune`."""
    tunes = options.method == "finetune"
    for each in fields(options):
        foreign = each.name not in BOTH and (each.name in FINETUNE) != tunes
        if foreign and getattr(options, each.name) != each.default:
            name = each.name.replace("_", "-")
            why = "is not of --method finetune" if tunes else "is of --method finetune only"
            raise InputError(f"--{name} {why}; leave it out")
    from springroll.planner.methods import METHODS

    if nearest(options.method, [*METHODS, "finetune"]) == "finetune" and not tunes:
        raise InputError(f"no method named {options.method!r}; did you mean finetune?")


def finetune(options: PlanOptions) -> int:
    """Print what a generation of fine-tuning by evolution needs."""
    if options.model is None:
        raise InputError("give the model that finetune is planned for, such as qwen2.5-1.5b")
    from springroll.finetune.asked_plan import asked_plan

    asked = {name: getattr(options, name) for name in FINETUNE if name != "prompt_tokens"}
    name, plan = asked_plan(
        options.model, options.device, options.prompt_tokens, rank=options.rank, **asked
    )
    show([plan.table(f"a generation of {name}")], {"model": name} | plan.record(), options.json)
    return 0


def show(tables: list[Any], record: Any, as_json: bool) -> None:
    """Tables for people, or one line for programs."""
    if as_json:
        print(json.dumps(record))
        return
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else WIDE)
    for table in tables:
        console.print(table)
