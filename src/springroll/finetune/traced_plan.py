"""What the programs of a generation need while they run, counted or asked of the compiler.

They are traced for shapes alone, so nothing is allocated. A large model would take minutes: a few
of its layers are traced, and what each one adds is counted for the others.
"""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.stages import Traced

from springroll import compat
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
from springroll.generate.traced import traced_generation
from springroll.models.hf.files import family_of
from springroll.planner.liveness import beside_bytes
from springroll.planner.working_set import hastily

Ask: TypeAlias = Callable[[Traced], int]  # bytes of a program beside its arguments


class _Way(NamedTuple):
    """How programs are asked. few: numbers of layers that are traced, if a model has more."""

    ask: Ask
    few: tuple[int, int]
    source: str


def traced_plan(
    config: FinetuneConfig,
    model: WritingModel,
    prompt_tokens: int,
    plan: GenerationPlan,
    platform: str | None = None,
    few: tuple[int, int] | None = None,
) -> GenerationPlan:
    """The plan with what its programs take beside their arguments.

    Args:
        config: of the run, with all lengths.
        model: what writes.
        prompt_tokens: of every prompt.
        plan: says how many rows and prompts at once.
        platform: "gpu": counted over programs that are traced for one, a second; None: asked of the
            compiler of this process's first device, seconds to a minute.
        few: numbers of layers to trace, in place of 1 and 2 to count and 2 and 4 to compile; models
            with no more than the second are traced whole.
    """
    way = COMPILED if platform is None else COUNTED
    if few is not None:
        way = way._replace(few=few)
    with compat.tracing_for(platform) if platform else contextlib.nullcontext():
        reading, writing = _generating(config, model, prompt_tokens, plan, way)
        updating = _updating(config, model, way.ask)
    taken = replace(plan.taken, reading=reading, writing=writing, updating=updating)
    return replace(plan, taken=taken, source=way.source)


def _generating(
    config: FinetuneConfig, model: WritingModel, prompt_tokens: int, plan: GenerationPlan, way: _Way
) -> tuple[int, int]:
    """Of the largest call that reads prompts, and of a segment of steps."""
    layers, (less, more) = model.config.layers, way.few
    of = lambda model: _of_whole(config, model, prompt_tokens, plan, way.ask)
    if layers <= more:
        return of(model)
    cut = zip(of(_of_layers(model, less)), of(_of_layers(model, more)), strict=True)
    steps = (layers - more) / (more - less)
    reading, writing = (b + int(steps * max(0, b - a)) for a, b in cut)
    return reading, writing


def _of_layers(model: WritingModel, layers: int) -> WritingModel:
    config: Any = replace(model.config, layers=layers)
    return family_of(config).model(config)


def _of_whole(
    config: FinetuneConfig, model: WritingModel, prompt_tokens: int, plan: GenerationPlan, ask: Ask
) -> tuple[int, int]:
    """The same, all layers traced."""
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
    found = {name: ask(program) for name, program in traced_generation(generator, *given)}
    return found["read"], found["write"]


def _updating(config: FinetuneConfig, model: WritingModel, ask: Ask) -> int:
    """Of the largest parameter, or slice of one, or of all where they are updated whole."""
    shapes = shapes_of(config, model)
    members, strategy = shapes.members(), shapes.strategy
    if one_program(config, members.perturbation):
        fitness = jax.ShapeDtypeStruct((members.size,), jnp.float32)
        tell = jax.jit(strategy.tell, donate_argnums=0)
        return ask(tell.trace(shapes.state, members, fitness))
    largest = max(members.perturbation.evolved, key=lambda leaf: slice_bytes(leaf.shape))
    only = replace(members.perturbation, leaves=(largest,))
    members = replace(members, perturbation=only)
    return max(map(ask, programs_in_place(strategy, shapes.state, members)))


def _compiled(program: Traced) -> int:
    """Temporary bytes of a program, and results that take no argument's place."""
    used = program.lower().compile(hastily()).memory_analysis()
    assert used is not None  # every backend that we know has one
    new = used.output_size_in_bytes - used.alias_size_in_bytes
    return int(used.temp_size_in_bytes + max(0, new))


def _counted(program: Traced) -> int:
    """The same, counted; results take the place of what is donated."""
    return beside_bytes(program.jaxpr, [x.donated for x in jax.tree.leaves(program.args_info)])


COMPILED = _Way(_compiled, (2, 4), "compiled")
COUNTED = _Way(_counted, (1, 2), "counted")
