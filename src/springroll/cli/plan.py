"""`springroll plan [MODEL]`: what a machine can train, how and how fast, beforehand."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from springroll.cli.options import parse
from springroll.errors import InputError, nearest
from springroll.run.options import COUNT, NOT_NEGATIVE, check_ranges, option

if TYPE_CHECKING:
    from springroll.planner.search import Options

WIDE = 120  # columns where nothing says how many there are


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Where weights, state and activations of a training step live, and how long the step takes;
    with `--method finetune`, what a generation of `springroll finetune` needs.

    Without a model: the largest that this machine can train, by every method. Nothing is
    allocated. Exit code 2 where nothing fits, with the nearest that does.

      springroll plan --device "RTX 3080" --host-memory 64GB
      springroll plan gpt-oss-120b --device H200 --host-memory 1.5TB
      springroll plan qwen3-8b --device "RTX 3080" --host-memory 128GB --total-tokens 1B --price 0.2
      springroll plan llama-7b --device 24GiB --host-memory 110GiB --method adamw-8bit
      springroll plan qwen2.5-7b --device "RTX 4090" --method finetune --pop-size 64
    """

    model: Annotated[str | None, tyro.conf.Positional] = None
    """A name such as `llama-7b`, a Hugging Face folder or its config.json, a GGUF file, or a name
    on the hub, of which only the config.json is downloaded."""
    device: str = "auto"
    """A card, its memory, several (`8x H200`), or `auto` for the one at hand."""
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
    """An optimizer of `springroll train` (adamw, muon, galore, fira, apollo, apollo-mini, lowgrad,
    lora), sgd or evolve; with -8bit or -4bit behind it the optimizer's state is kept in so many
    bits. Or `finetune`."""
    rank: int | None = option(None, COUNT)
    """Rank of subspaces, default: a quarter of the hidden size; of adapters, default: 16; of
    perturbations, default: 1."""
    basis_bits: Literal[32, 16, 8, 4] = 32
    """Bits per number of the bases of subspaces (`galore`, `fira`, `lowgrad`)."""
    base_bits: Literal[8, 4] | None = None
    """Bits per number of the matrices that `lora` adapts; default: the type of --dtype."""
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
    total_tokens: str | None = None
    """Tokens of a whole training, such as 10B: its steps and days."""
    price: float | None = option(None, NOT_NEGATIVE)
    """Price of an hour of the machine, all its devices together: what the training costs."""
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
    for name in ("total_tokens", "price"):
        if options.model is None and getattr(options, name) is not None:
            spelt = name.replace("_", "-")
            raise InputError(f"give the model that --{spelt} is planned for, such as llama-7b")
    from springroll.planner.search import options_of

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
        base_bits=options.base_bits,
    )
    if options.model is not None:
        return of_model(options.model, options, asked)
    from springroll.planner.alternatives import capacity, capacity_table

    ways = capacity(asked)
    show([capacity_table(ways)], [way.record() for way in ways], options.json)
    return 0


def of_model(model: str, options: PlanOptions, asked: "Options") -> int:
    """Print the plan of a model, what a whole training takes, and the other methods."""
    from springroll.planner.alternatives import alternatives, alternatives_table
    from springroll.planner.asked_model import named_model
    from springroll.planner.plan import plan_or_refuse
    from springroll.planner.plan_result import run_table
    from springroll.planner.search import larger_step
    from springroll.planner.whole_run import tokens_of

    total_tokens = tokens_of(options.total_tokens or "1B")
    name, config = named_model(model, options.experts_per_bundle)
    plan = plan_or_refuse(name, config, asked)
    larger, others = larger_step(name, config, asked, plan), alternatives(name, config, asked)
    training = plan.whole_run(total_tokens, options.price)
    record = plan.record() | {
        "alternatives": [way.record() for way in others],
        "larger_step": larger and larger.record(),
        "training": training._asdict(),
    }
    wanted = options.total_tokens is not None or options.price is not None
    whole = [run_table(training)] if wanted else []
    show([*plan.tables(larger), *whole, alternatives_table(others)], record, options.json)
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
