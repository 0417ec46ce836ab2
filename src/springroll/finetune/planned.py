"""A run by its plan: rows and prompts at once are what memory allows, and are told beforehand."""

from dataclasses import replace

from rich.table import Table

from springroll.errors import InputError
from springroll.finetune.config import FinetuneConfig
from springroll.finetune.generation_plan import GenerationPlan, generation_plan, shapes_of
from springroll.finetune.setup import Setup
from springroll.memory import available_bytes, spelt

UNKNOWN = 8 << 30  # bytes, where the system does not tell how many there are


def planned(
    config: FinetuneConfig, setup: Setup
) -> tuple[FinetuneConfig, Setup, list[str | Table]]:
    """(config, setup, what to print) of a run whose generations fit into memory.

    The config says what keys and values may take and how many prompt tokens are read at once, so
    that a run that is resumed batches its answers in the same way, on a machine with other memory
    too. Gradients have no such plan: half of the memory is for their answers.

    Raises:
        InputError: not one answer fits the `cache_memory` that is asked for.
    """
    if config.method != "es":
        return *batched(config, setup, setup.generator.memory_bytes), []
    longest = max(map(len, setup.held_out.prompts))
    shapes = shapes_of(config, setup.model)
    plan = generation_plan(config, shapes, longest, available_bytes() or UNKNOWN, None)
    if config.cache_memory is not None and not config.rows and not plan.rows:
        raise InputError(
            f"cache_memory is {config.cache_memory}, in which no answer fits: a prompt of "
            f"{longest:,} tokens and its answer need more; give more, or leave it out"
        )
    lines: list[str | Table] = [plan.table("a generation takes, estimated")]
    if not plan.fits:
        lines.append(warning(plan))
    if config.rows and config.cache_memory is not None:
        lines.append(
            f"note: --rows {config.rows} decides how many answers are written side by side, and "
            "--cache-memory is not used"
        )
    config = replace(config, prefill_tokens=plan.prefill_tokens)
    config, setup = batched(config, setup, plan.cache_bytes if plan.rows else None)
    return config, setup, lines


def batched(
    config: FinetuneConfig, setup: Setup, cache_bytes: int | None
) -> tuple[FinetuneConfig, Setup]:
    """The config, with what keys and values may take unless it says it, and generators that keep
    to it."""
    if cache_bytes is not None and not config.rows and config.cache_memory is None:
        config = replace(config, cache_memory=f"{-(-cache_bytes // 1024)}KiB")
    changed: dict[str, int] = {}
    if config.prefill_tokens is not None:
        changed["prefill_tokens"] = config.prefill_tokens
    if config.cache_bytes is not None and not config.rows:
        changed["memory_bytes"] = config.cache_bytes
    both = {name: replace(getattr(setup, name), **changed) for name in ("generator", "greedy")}
    return config, replace(setup, config=config, **both)


def warning(plan: GenerationPlan) -> str:
    """What does not fit, and what would help."""
    return (
        f"warning: a generation takes about {spelt(plan.taken.peak)} of memory and "
        f"{spelt(plan.memory)} may be used; a smaller --cache-memory, fewer --pop-size or "
        f"--weights bfloat16 need less"
    )
