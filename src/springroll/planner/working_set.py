"""Bytes that a layer's computation needs beside its arguments, of the programs of the engine.

For the CPU of this process they are asked of its compiler, for shapes alone: nothing is allocated,
and XLA leaves out what only makes programs fast. For a card they are counted over the programs as
they are traced for one (`liveness`), in no time, whether there is one here or not.
"""

import contextlib
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.stages import Traced

from springroll import compat
from springroll.models.decoder import decoder
from springroll.models.decoder_config import DecoderConfig, shapes, structs
from springroll.models.expert_stages import expert_stages, only_experts, without_experts
from springroll.models.moe import statistics
from springroll.planner.liveness import temporary_bytes
from springroll.stream.step_programs import StepPrograms
from springroll.stream.table_rows import by_rows, head_rows, rows_at_once
from springroll.trees import PyTree


class WorkingSet(NamedTuple):
    """Temporary bytes of the largest program for a layer, of that for head and loss, and of the
    gradient of the embedding."""

    layer: int
    head: int
    embed: int = 0


class Arguments(NamedTuple):
    """Shapes of what the parts of a step take."""

    layer: PyTree
    rest: PyTree
    x: jax.ShapeDtypeStruct
    stats: PyTree  # of one layer
    tokens: jax.ShapeDtypeStruct


def arguments(config: DecoderConfig, rows: int, sequence: int, dtype: str) -> Arguments:
    """Shapes for micro-batches of `rows` sequences."""
    struct = lambda shape: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
    tree = structs(shapes(config), dtype)
    layer = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape[1:], w.dtype), tree["layers"])
    rest = {name: leaf for name, leaf in tree.items() if name != "layers"}
    x = struct((rows, sequence, config.hidden))
    tokens = jax.ShapeDtypeStruct((rows, sequence + 1), jnp.int32)
    return Arguments(layer, rest, x, statistics(config), tokens)


INDEX = jax.ShapeDtypeStruct((), jnp.int32)


Ask: TypeAlias = Callable[[], Traced]
HASTY: dict[str, Any] = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


@functools.lru_cache(maxsize=256)
def working_set(
    config: DecoderConfig,
    rows: int,
    sequence: int,
    dtype: str,
    trains: bool = True,
    platform: str | None = None,
) -> WorkingSet:
    """The working set of whole layers.

    Args:
        trains: for gradients; else of the forward pass alone.
        platform: "gpu": counted, a fraction of a second; None: asked of the compiler of this
            process's first device, seconds.
    """
    programs = StepPrograms(decoder(config))
    args = arguments(config, rows, sequence, dtype)
    forward = (args.layer, None, args.x, INDEX)
    if not trains:
        head = (args.rest, None, args.x, [args.stats] * config.layers, args.tokens)
        asked = [lambda: programs.forward.trace(*forward), lambda: programs.score.trace(*head)]
        return WorkingSet(*_temporary(asked, platform))
    asked = [
        lambda: programs.backward.trace(*forward, args.x, args.stats, None),
        lambda: _embed_backward(config, programs, args, args.x),
        *_head(config, programs, args, args.x),
    ]
    layer, embed, *head = _temporary(asked, platform)
    return WorkingSet(layer, max(head), embed)


@functools.lru_cache(maxsize=256)
def expert_working_set(
    config: DecoderConfig,
    rows: int,
    sequence: int,
    dtype: str,
    together: int,
    platform: str | None = None,
) -> WorkingSet:
    """The same where `together` experts are a bundle: `layer` is that of the largest bundle."""
    model = expert_stages(decoder(config), together)
    programs = StepPrograms(model)
    args = arguments(config, rows, sequence, dtype)
    carry = jax.eval_shape(
        model.embed, args.rest, jax.ShapeDtypeStruct(args.x.shape[:2], jnp.int32)
    )
    few = lambda w: jax.ShapeDtypeStruct((together, *w.shape[1:]), w.dtype)
    bundles = [without_experts(args.layer), jax.tree.map(few, only_experts(args.layer))]

    def backward(place: int) -> Traced:
        entered = model.restored(place, model.kept(place, carry))
        stats = {} if place else args.stats
        return programs.backward.trace(bundles[place], None, entered, INDEX, carry, stats, None)

    asked = [
        lambda: backward(0),
        lambda: backward(1),
        lambda: _embed_backward(config, programs, args, carry),
        *_head(config, programs, args, carry),
    ]
    first, second, embed, *head = _temporary(asked, platform)
    return WorkingSet(max(first, second), max(head), embed)


def head_slice(config: DecoderConfig, tokens: int, platform: str | None) -> int:
    """Numbers of a head whose gradient is there at a time in micro-batches of so many tokens; 0
    where it is there as a whole."""
    shape = config.vocab, config.hidden
    if decoder(config).sliced_head is None or not by_rows(shape):
        return 0
    with compat.tracing_for(platform) if platform else contextlib.nullcontext():
        return head_rows(shape, tokens) * config.hidden


def _head(config: DecoderConfig, programs: StepPrograms, args: Arguments, x: PyTree) -> list[Ask]:
    """The programs of head and loss."""
    head = (args.rest, None, x, [args.stats] * config.layers, args.tokens, None)
    name = decoder(config).sliced_head
    if name is None or not by_rows(args.rest[name].shape):
        return [lambda: programs.finish.trace(*head)]

    def a_slice() -> Traced:
        inputs = programs.finish_apart.trace(*head, name).out_info[-1]
        weight = args.rest[name]
        rows = head_rows(weight.shape, args.x.shape[0] * args.x.shape[1])
        return programs.head_slice.trace(weight, args.tokens, inputs, INDEX, None, rows)

    return [lambda: programs.finish_apart.trace(*head, name), a_slice]


def _embed_backward(
    config: DecoderConfig, programs: StepPrograms, args: Arguments, dx: PyTree
) -> Traced:
    """The program that adds the gradient of the embedding, or of the most of its rows that come at
    a time, to an earlier one."""
    table, rest = args.rest["embed_tokens"], args.rest
    if not config.tied and by_rows(table.shape):
        _, rows = rows_at_once(config.vocab, *table.shape)
        rest = rest | {"embed_tokens": jax.ShapeDtypeStruct((rows, config.hidden), table.dtype)}
    given = rest, None, args.tokens, dx
    first = jax.tree.map(lambda _: None, rest)
    added, _ = jax.eval_shape(programs._embed_backward, *given, first)
    return programs.embed_backward.trace(*given, added)


def _temporary(asked: list[Ask], platform: str | None) -> list[int]:
    if platform is not None:
        with compat.tracing_for(platform):
            return [temporary_bytes(ask().jaxpr) for ask in asked]
    with ThreadPoolExecutor(2) as pool:  # the compiler lets go of Python
        return list(pool.map(_compiled, asked))


def hastily() -> dict[str, Any] | None:
    """Options of a compiler that is only asked about memory: what makes programs fast on a CPU is
    left out, which halves the time and does not change their buffers."""
    return HASTY if jax.default_backend() == "cpu" else None


def _compiled(ask: Ask) -> int:
    analysis = ask().lower().compile(hastily()).memory_analysis()
    assert analysis is not None  # every backend that we know has one
    return int(analysis.temp_size_in_bytes)
