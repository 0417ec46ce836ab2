"""A run by its plan: rows and prompts at once are what memory allows, and are told beforehand."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jax.sharding import Mesh
from rich.table import Table

from springroll.errors import InputError
from springroll.evolve.perturbation import AXIS
from springroll.finetune.config import FinetuneConfig
from springroll.finetune.generation_plan import GenerationPlan, Shapes, generation_plan, shapes_of
from springroll.finetune.setup import Setup
from springroll.memory import available_bytes, spelt
from springroll.run.devices import devices_for
from springroll.trees import tree_bytes

UNKNOWN = 8 << 30  # bytes, where the system does not tell how many there are


def planned(
    config: FinetuneConfig, setup: Setup
) -> tuple[FinetuneConfig, Setup, list[str | Table]]:
    """(config, setup, what to print) of a run whose generations fit into memory.

    The config says on how many devices answers are written, what keys and values may take there and
    how many prompt tokens are read at once, so that a run that is resumed batches its answers in
    the same way, on another machine too. Runs from before there was a choice of devices go on with
    one. Gradients have no such plan: half of the memory is for their answers.

    Raises:
        InputError: there are not so many devices; not one answer fits the `cache_memory` that is
            asked for.
    """
    devices = devices_for(config.devices or (1 if config.resume else None))
    config = replace(config, devices=len(devices))
    if len(devices) > 1:
        mesh = Mesh(np.array(devices), (AXIS,))
        setup = with_generators(setup, mesh=mesh)
    if config.method != "es":
        half = setup.generator.memory_bytes
        return *batched(config, setup, half and half // sharing(devices)), []
    longest = max(map(len, setup.held_out.prompts))
    shapes = shapes_of(config, setup.model)
    plan = generation_plan(config, shapes, longest, memory_for(shapes, devices), None)
    if config.cache_memory is not None and not config.rows and not plan.rows:
        raise InputError(
            f"cache_memory is {config.cache_memory}, in which no answer fits: a prompt of "
            f"{longest:,} tokens and its answer need more; give more, or leave it out"
        )
    where = f" on the first of {len(devices)} devices" if len(devices) > 1 else ""
    lines: list[str | Table] = [plan.table(f"a generation takes{where}, estimated")]
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
    return config, replace(with_generators(setup, **changed), config=config)


def with_generators(setup: Setup, **changed: Any) -> Setup:
    """The setup, both of whose generators have these fields."""
    both = {name: replace(getattr(setup, name), **changed) for name in ("generator", "greedy")}
    return replace(setup, **both)


def sharing(devices: Sequence[Any]) -> int:
    """How many of the devices have the same memory: those of a processor."""
    return len(devices) if devices[0].platform == "cpu" else 1


def memory_for(shapes: Shapes, devices: Sequence[Any]) -> int:
    """Bytes that a generation may take on each of the devices.

    On devices of a processor beside the first, layers that are taken apart are a second copy (see
    `springroll.generate.views`).
    """
    copies = tree_bytes(shapes.params) if sharing(devices) > 1 else 0
    return max(0, (available_bytes(devices) or UNKNOWN) - copies)


def warning(plan: GenerationPlan) -> str:
    """What does not fit, and what would help."""
    return (
        f"warning: a generation takes about {spelt(plan.taken.peak)} of memory and "
        f"{spelt(plan.memory)} may be used; a smaller --cache-memory, fewer --pop-size or "
        f"--weights bfloat16 need less"
    )
