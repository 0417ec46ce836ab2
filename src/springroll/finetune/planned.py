"""A run by its plan: rows and prompts at once are what memory allows, and are told beforehand."""

from dataclasses import replace

from rich.table import Table

from springroll.errors import InputError
from springroll.finetune.config import FinetuneConfig
from springroll.finetune.generation_plan import GenerationPlan, generation_plan, shapes_of
from springroll.finetune.setup import Setup
from springroll.generate.generator import PREFILL_TOKENS
from springroll.generate.prompts import rounded
from springroll.memory import available_bytes, spelt

UNKNOWN = 8 << 30  # bytes, where the system does not tell how many there are


def planned(
    config: FinetuneConfig, setup: Setup
) -> tuple[FinetuneConfig, Setup, list[str | Table]]:
    """(config, setup, what to print) of a run whose generations fit into memory.

    Where not all answers fit side by side, or prompts not be read at once, the config says how many
    do. A run that is resumed has the same then, so that its answers are batched in the same way.
    Gradients have no such plan: half of the memory is for their answers.

    Raises:
        InputError: not one answer fits the `cache_memory` that is asked for.
    """
    if config.method != "es":
        return config, setup, []
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
    if plan.rows < plan.jobs and not config.rows and config.cache_memory is None and plan.rows:
        config = replace(config, cache_memory=f"{-(-plan.cache_bytes // 1024)}KiB")
    asked = max(plan.jobs, len(setup.held_out.prompts)) * rounded(longest)
    if plan.prefill_tokens < min(asked, PREFILL_TOKENS):
        config = replace(config, prefill_tokens=plan.prefill_tokens)
    changed = {"prefill_tokens": plan.prefill_tokens}
    if not config.rows and plan.rows:
        changed["memory_bytes"] = config.cache_bytes or plan.cache_bytes
    generators = {
        name: replace(getattr(setup, name), **changed) for name in ("generator", "greedy")
    }
    return config, replace(setup, config=config, **generators), lines


def warning(plan: GenerationPlan) -> str:
    """What does not fit, and what would help."""
    return (
        f"warning: a generation takes about {spelt(plan.taken.peak)} of memory and "
        f"{spelt(plan.memory)} may be used; a smaller --cache-memory, fewer --pop-size or "
        f"--weights bfloat16 need less"
    )
