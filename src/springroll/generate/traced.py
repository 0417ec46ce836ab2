"""The programs of generation traced for shapes alone, whose memory can be counted or asked."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax.stages import Traced

from springroll.evolve.members import Members
from springroll.generate import programs
from springroll.generate.generator import Generator, Layout
from springroll.generate.queue import Slots, Waiting
from springroll.generate.spread import parts_of
from springroll.trees import PyTree


def traced_generation(
    options: Generator,
    params: PyTree,
    members: Members,
    prompts: Sequence[Sequence[int]],
    unperturbed: int = 0,
    devices: int = 1,
) -> Iterator[tuple[str, Traced]]:
    """The programs of `options.run(params, members, prompts)` while all its rows are filled, each
    prompt being read whole.

    Args:
        params, members: may be of `jax.ShapeDtypeStruct`s; members with their factors.
        devices: over which rows are spread; the programs are those of the first.

    Returns:
        ("read", the largest call that takes prompts in), and ("write", a segment of steps).
    """
    options = replace(options, shared_prompt_tokens=0)
    part = parts_of(members, len(prompts), unperturbed, [None] * devices)[0]
    members = jax.eval_shape(part.cut, members)
    layout = Layout.of(options, params, members, prompts, part.jobs)
    program, slots = layout.program, Slots.empty(layout.groups, layout.height)
    new = slots.fill(Waiting(layout.jobs))
    count = slots.job.size
    draw = jax.eval_shape(lambda: options.sampling.draw(0))
    memory = jax.eval_shape(lambda: programs.memory(program, count))
    rows = jax.eval_shape(lambda: programs.idle(count))
    clock = jax.ShapeDtypeStruct((), jnp.int32)
    largest = max(layout.readings(slots, new), key=lambda reading: reading.prompt.size)
    begin = layout.arguments(slots, largest)
    source = programs.Source(params, members, draw)
    yield "read", programs.take_in.trace(program, source, clock, *begin, memory, rows, None)
    weights = jax.eval_shape(lambda params: programs.step_weights(program, params), params)
    pairs = jax.ShapeDtypeStruct((layout.groups,), jnp.int32)
    groups = jax.eval_shape(lambda *given: programs.step_groups(program, *given), members, pairs)
    writer = programs.Writer(weights, groups, draw)
    segment = options.segment
    yield (
        "write",
        programs.write_on.trace(program, segment, writer, clock, clock, memory, rows),
    )
