"""Bytes that a layer's computation needs beside its arguments, from the compiler.

The programs are those that the engine runs, compiled for shapes alone: nothing is allocated, so a
model of any size can be asked about on any machine, in a second or two per shape of layer.

A CPU computes bfloat16 in float32 and copies whole weights for it, which no card does. Where a card
is planned for on a CPU, the float32 program is compiled in its place: scores and sums are float32
on both, other activations count twice as much as they will, so the plan errs on the safe side.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.stages import Lowered

from springroll.models.decoder import decoder
from springroll.models.decoder_config import DecoderConfig, shapes, structs
from springroll.models.expert_stages import expert_stages, only_experts, without_experts
from springroll.stream.step_programs import StepPrograms
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
    stats = jax.eval_shape(decoder(config).block, layer, x, INDEX)[1]
    return Arguments(layer, rest, x, stats, tokens)


INDEX = jax.ShapeDtypeStruct((), jnp.int32)


@functools.lru_cache(maxsize=256)
def working_set(
    config: DecoderConfig, rows: int, sequence: int, dtype: str, trains: bool = True
) -> WorkingSet:
    """Ask the compiler of this process's first device; seconds.

    Args:
        trains: for gradients; else of the forward pass alone.
    """
    programs = StepPrograms(decoder(config))
    args = arguments(config, rows, sequence, dtype)
    stats = [args.stats] * config.layers
    forward = (args.layer, None, args.x, INDEX)
    head = (args.rest, None, args.x, stats, args.tokens)
    if trains:
        asked = [
            lambda: programs.backward.lower(*forward, args.x, args.stats, None),
            lambda: programs.finish.lower(*head, None),
            lambda: _embed_backward(programs, args, args.x),
        ]
    else:
        asked = [lambda: programs.forward.lower(*forward), lambda: programs.score.lower(*head)]
    with ThreadPoolExecutor(2) as pool:  # the compiler lets go of Python
        return WorkingSet(*pool.map(_temporary, asked))


@functools.lru_cache(maxsize=256)
def expert_working_set(
    config: DecoderConfig, rows: int, sequence: int, dtype: str, together: int
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

    def backward(place: int) -> Lowered:
        entered = model.restored(place, model.kept(place, carry))
        stats = {} if place else args.stats
        return programs.backward.lower(bundles[place], None, entered, INDEX, carry, stats, None)

    head = (args.rest, None, carry, [args.stats] * config.layers, args.tokens, None)
    asked = [
        lambda: backward(0),
        lambda: backward(1),
        lambda: programs.finish.lower(*head),
        lambda: _embed_backward(programs, args, carry),
    ]
    with ThreadPoolExecutor(2) as pool:
        *layer, last, embed = pool.map(_temporary, asked)
    return WorkingSet(max(layer), last, embed)


def _embed_backward(programs: StepPrograms, args: Arguments, dx: PyTree) -> Lowered:
    """The program that adds the gradient of the embedding to an earlier one."""
    given = args.rest, None, args.tokens, dx
    first = jax.tree.map(lambda _: None, args.rest)
    added, _ = jax.eval_shape(programs._embed_backward, *given, first)
    return programs.embed_backward.lower(*given, added)


def _temporary(lower: Callable[[], Lowered]) -> int:
    analysis = lower().compile().memory_analysis()
    assert analysis is not None  # every backend that we know has one
    return int(analysis.temp_size_in_bytes)
