"""What the programs of a generation need while they run, from the compiler.

They are compiled for shapes alone, so nothing is allocated. A large model would take minutes: a few
of its layers are compiled, and what each one adds is counted for the others.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.stages import Lowered

from springroll.evolve.in_place import programs_in_place
from springroll.finetune.config import FinetuneConfig
from springroll.finetune.generation_plan import (
    GenerationPlan,
    one_program,
    shapes_of,
    slice_bytes,
)
from springroll.finetune.setup import WritingModel
from springroll.generate.generator import Generator
from springroll.generate.lowered import lowered_generation
from springroll.models.hf.files import family_of
from springroll.planner.working_set import hastily

FEW = (2, 4)  # layers


def compiled_plan(
    config: FinetuneConfig,
    model: WritingModel,
    prompt_tokens: int,
    plan: GenerationPlan,
    few: tuple[int, int] = FEW,
) -> GenerationPlan:
    """The plan with what the compiler of this process's first device says of its programs.

    Args:
        config: of the run, with all lengths.
        model: what writes.
        prompt_tokens: of every prompt.
        plan: says how many rows and prompts at once.
        few: numbers of layers to compile; models with no more than the second are compiled whole.
    """
    layers = model.config.layers
    if layers <= few[1]:
        reading, writing = _generating(config, model, prompt_tokens, plan)
    else:
        cut = [_generating(config, _of_layers(model, n), prompt_tokens, plan) for n in few]
        more = (layers - few[1]) / (few[1] - few[0])
        grown = (b + int(more * max(0, b - a)) for a, b in zip(*cut, strict=True))
        reading, writing = grown
    updating = _updating(config, model)
    taken = replace(plan.taken, reading=reading, writing=writing, updating=updating)
    return replace(plan, taken=taken, source="compiled")


def _of_layers(model: WritingModel, layers: int) -> WritingModel:
    config: Any = replace(model.config, layers=layers)
    return family_of(config).model(config)


def _generating(
    config: FinetuneConfig, model: WritingModel, prompt_tokens: int, plan: GenerationPlan
) -> tuple[int, int]:
    """Of the largest call that reads prompts, and of a segment of steps."""
    shapes = shapes_of(config, model)
    generator = Generator(
        model=model,
        end=frozenset((0,)),
        max_tokens=config.max_tokens or 1,
        temperature=config.sampling_temperature,
        rows=max(1, plan.rows),
        prefill_tokens=plan.prefill_tokens,
    )
    distinct = [[i + 1] * prompt_tokens for i in range(config.num_prompts)]
    asked = [prompt for prompt in distinct for _ in range(config.answers)]
    given = (shapes.params, shapes.members(), asked, config.unperturbed, plan.devices)
    found = {name: _beside(program) for name, program in lowered_generation(generator, *given)}
    return found["read"], found["write"]


def _updating(config: FinetuneConfig, model: WritingModel) -> int:
    """Of the largest parameter, or slice of one, or of all where they are updated whole."""
    shapes = shapes_of(config, model)
    members, strategy = shapes.members(), shapes.strategy
    if one_program(config, members.perturbation):
        fitness = jax.ShapeDtypeStruct((members.size,), jnp.float32)
        tell = jax.jit(strategy.tell, donate_argnums=0)
        return _beside(tell.lower(shapes.state, members, fitness))
    largest = max(members.perturbation.evolved, key=lambda leaf: slice_bytes(leaf.shape))
    only = replace(members.perturbation, leaves=(largest,))
    members = replace(members, perturbation=only)
    return max(map(_beside, programs_in_place(strategy, shapes.state, members)))


def _beside(program: Lowered) -> int:
    """Temporary bytes of a program, and results that take no argument's place."""
    used = program.compile(hastily()).memory_analysis()
    assert used is not None  # every backend that we know has one
    new = used.output_size_in_bytes - used.alias_size_in_bytes
    return int(used.temp_size_in_bytes + max(0, new))
