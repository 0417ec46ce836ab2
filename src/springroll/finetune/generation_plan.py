"""What a generation of fine-tuning by evolution needs and how long it takes, before it is run.

Weights, what is kept beside them, factors, keys and values are counted exactly, over shapes:
nothing is allocated. What programs need while they run is an estimate (`Work`) that takes no time;
a test holds it against the compiler, and `traced_plan` counts it or asks that. Times follow
from the rates of the device.
"""

import functools
import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from springroll.evolve.in_place import SLICE_BYTES, evolved_bytes
from springroll.evolve.members import Members
from springroll.evolve.perturbation import Leaf, Perturbation
from springroll.evolve.strategy import EvolutionState, Strategy
from springroll.finetune.config import FinetuneConfig
from springroll.finetune.evolution import (
    held_as,
    momentum_of,
    roles_of,
    strategy_of,
    updated_whole,
)
from springroll.finetune.setup import WritingModel
from springroll.generate.generator import PREFILL_TOKENS, float_type
from springroll.generate.prompts import largest_call, room, rounded
from springroll.memory import spelt
from springroll.planner.devices import UPDATE_BYTES, Rates
from springroll.trees import PyTree, tree_bytes, tree_numbers

USED = 0.9  # of the memory that is free: the rest is for programs, and for what grows into holes
ROUNDED = 1.5  # calls that read prompts are of rounded sizes, larger by about this
READ_SHARE = 0.25  # of what weights and factors leave: the most that reading prompts may take


class Shapes(NamedTuple):
    """What a generation holds, without values."""

    model: WritingModel
    strategy: Strategy
    state: EvolutionState  # weights, and what is kept beside them
    perturbation: Perturbation

    @property
    def params(self) -> PyTree:
        """The weights."""
        return self.state.params

    def members(self) -> Members:
        """With the factors of all of them."""
        assert not isinstance(self.strategy.parts, str)
        pairs, perturbation = self.strategy.parts.population.pairs, self.perturbation
        struct: Any = jax.ShapeDtypeStruct
        return Members(
            pairs=struct((pairs,), jnp.uint32),
            factors={
                leaf.path: _factors(perturbation, leaf, pairs) for leaf in perturbation.evolved
            },
            seed=self.state.seed,
            epoch=self.state.generation,
            sigma=struct((), jnp.float32),
            perturbation=perturbation,
        )


def _factors(perturbation: Perturbation, leaf: Leaf, pairs: int) -> tuple[PyTree, ...]:
    """Shapes of what `Perturbation.draw` draws for a parameter: tracing its noise takes seconds."""
    real = perturbation.noise.bound is None
    struct = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32 if real else jnp.int8)
    lead = (*leaf.shape[: leaf.stacked], pairs)
    if leaf.kind == "dense":
        return (struct((*lead, *leaf.shape[leaf.stacked :])),)
    return tuple(struct((*lead, *leaf.side(letter), perturbation.rank)) for letter in "mn")


class Work(NamedTuple):
    """Bytes that programs need beside their arguments, estimated.

    token: per token of a prompt that is read. row: per row that writes. group: per group of rows,
    its factors in the type of the weights and as products take them.
    """

    token: int
    row: int
    group: int


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Bytes of a generation. Those that programs need while they run are last."""

    weights: int
    residuals: int  # what int8 weights lose by rounding, or float32 copies
    momentum: int  # and other state of the optimizer
    factors: int  # of all members, and those of the groups of rows
    cache: int  # keys and values, or states, of all rows
    reading: int
    writing: int
    updating: int

    @property
    def peak(self) -> int:
        """At the moment that takes most."""
        generating = self.cache + max(self.reading, self.writing)
        kept = self.weights + self.residuals + self.momentum + self.factors
        return kept + max(generating, self.updating)

    def sizes(self) -> dict[str, int]:
        """By kind, as people read them."""
        return {
            "weights": self.weights,
            "kept beside the weights": self.residuals,
            "momentum": self.momentum,
            "factors": self.factors,
            "keys and values": self.cache,
            "while prompts are read": self.reading,
            "while answers are written": self.writing,
            "while weights are updated": self.updating,
        }


@dataclass(frozen=True, kw_only=True)
class GenerationPlan:
    """A generation in so much memory, that of one device.

    memory: bytes there are. jobs: answers of a generation that the device writes; rows: how many of
    them side by side. devices: that write as many, of which this is the one that updates weights.
    cache_bytes: what keys and values may take, if later prompts are longer. prefill_tokens: of
    prompts that are read at once. seconds: of reading, writing and updating; None without rates.
    """

    memory: int
    taken: Taken
    members: int
    jobs: int
    rows: int
    cache_bytes: int
    prefill_tokens: int
    seconds: dict[str, float] | None
    source: str = "estimated"  # of what programs need
    devices: int = 1

    @property
    def fits(self) -> bool:
        """Whether there is as much memory."""
        return self.rows > 0 and self.taken.peak <= self.memory

    @property
    def passes(self) -> int:
        """How often all rows are filled until every answer is written."""
        return -(-self.jobs // max(1, self.rows))

    def table(self, title: str) -> Table:
        """For people."""
        table = Table(title, "", title_justify="left")
        table.columns[1].justify = "right"
        for kind, size in self.taken.sizes().items():
            if size:
                table.add_row(kind, spelt(size))
        table.add_section()
        table.add_row("at the peak", spelt(self.taken.peak))
        table.add_row("may be used", spelt(self.memory))
        table.add_section()
        table.add_row("answers side by side", f"{self.rows:,} of {self.jobs:,}")
        if self.devices > 1:
            table.add_row("devices that write as many", f"{self.devices:,}")
        table.add_row("prompt tokens read at once", f"{self.prefill_tokens:,} at most")
        if self.seconds is not None:
            for kind, taken in self.seconds.items():
                table.add_row(f"{kind}, estimated", f"{taken:,.3g} s")
            total = sum(self.seconds.values())
            table.add_row("a generation without rewards, estimated", f"{total:,.3g} s")
        return table

    def record(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self.taken) | {
            "peak": self.taken.peak,
            "memory": self.memory,
            "fits": self.fits,
            "jobs": self.jobs,
            "rows": self.rows,
            "passes": self.passes,
            "devices": self.devices,
            "members_at_once": self.rows * self.members / self.jobs,
            "prefill_tokens": self.prefill_tokens,
            "seconds": self.seconds,
            "programs": self.source,
        }


def shapes_of(config: FinetuneConfig, model: WritingModel) -> Shapes:
    """What a run with this config holds, which has its momentum (see `setup.resolved`)."""
    params = held_as(model, config.weights, config.rest)
    roles = roles_of(model, config.weights, config.rest)
    strategy = strategy_of(config, roles, config.sigma or 1.0)
    state = jax.eval_shape(strategy.init, jax.eval_shape(lambda: jax.random.key(0)), params)
    assert not isinstance(strategy.parts, str)
    return Shapes(model, strategy, state, strategy.parts.population.perturbation(params))


def estimated_work(shapes: Shapes, prompt: int, length: int) -> Work:
    """From the widths of the model: outputs of a layer's matrices, scores, logits, and slices.

    Args:
        shapes: of the model and its state.
        prompt: tokens that a prompt is padded to.
        length: tokens that a row has room for.
    """
    model, params = shapes.model, shapes.params
    dtype, config = float_type(params), model.config
    stacks = [x.shape for x in jax.tree.leaves(params["layers"]) if len(x.shape) > 2]
    widest = max(math.prod(shape[1:-1]) for shape in stacks)
    heads, hidden, depth = getattr(config, "heads", 0), config.hidden, config.layers
    one = _of_token(model, dtype)
    # Two outputs of a gate, of the weights and of the thin term each, and their product; the
    # residual stream, queries, keys and values, as they go in and come out.
    inner = 5 * dtype.itemsize * widest + 20 * hidden
    token = inner + one + 8 * heads * prompt + 4 * config.vocab // prompt
    layer = 4 * length * one // (depth * dtype.itemsize)  # keys and values of one, in float32
    row = inner + 4 * config.vocab + layer + 8 * heads * length
    perturbation = shapes.perturbation
    numbers = sum(leaf.numbers_per_pair(perturbation.rank) for leaf in perturbation.leaves)
    wide = dtype.itemsize + (0 if dtype.itemsize == 4 else 4)
    return Work(token, row, numbers * wide)


def _of_token(model: WritingModel, dtype: np.dtype) -> int:
    """Bytes of keys and values of a token."""
    row = lambda tokens: tree_bytes(jax.eval_shape(lambda: model.memory(1, tokens, dtype)))
    return (row(32) - row(16)) // 16


def one_program(config: FinetuneConfig, perturbation: Perturbation) -> bool:
    """Whether one program updates all parameters (see `updated_whole`, `tell_in_place`)."""
    return updated_whole(config) or evolved_bytes(perturbation) <= SLICE_BYTES


def slice_bytes(shape: tuple[int, ...]) -> int:
    """Bytes of what is updated at a time of a parameter, in float32."""
    return min(4 * math.prod(shape), max(4 * math.prod(shape[1:]), SLICE_BYTES))


def estimated_update(config: FinetuneConfig, perturbation: Perturbation) -> int:
    """Bytes of an update beside its arguments: sums, weights, steps and what they become."""
    if one_program(config, perturbation):
        return 4 * evolved_bytes(perturbation)
    return 4 * max(slice_bytes(leaf.shape) for leaf in perturbation.evolved)


def generation_plan(
    config: FinetuneConfig, shapes: Shapes, prompt_tokens: int, memory: int, rates: Rates | None
) -> GenerationPlan:
    """Bytes and seconds of a generation; as many rows as fit, unless the config says it.

    Args:
        config: population, prompts, answers, tokens; `devices`, `rows`, `cache_memory` and
            `prefill_tokens` where given.
        shapes: of the model and its state.
        prompt_tokens: of the longest prompt.
        memory: bytes there are on the device.
        rates: of the device; None: times are left out.
    """
    max_tokens = config.max_tokens or 1
    prompt = rounded(prompt_tokens)
    length = room(prompt, max_tokens)
    dtype = float_type(shapes.params)
    row = tree_bytes(jax.eval_shape(lambda: shapes.model.memory(1, length, dtype)))
    # What all prompts begin with is kept for every member while its rows wait.
    row += min(row, (config.shared_prompt_tokens or 0) * _of_token(shapes.model, dtype))
    work = estimated_work(shapes, prompt, length)
    weights, devices = tree_bytes(shapes.params), config.devices or 1
    share = lambda count: -(-count // devices)
    pairs = share(config.population // 2)
    # The first device has all factors, for the update, and those of its own pairs apart.
    drawn = config.population // 2 + (pairs if devices > 1 else 0)
    factors = drawn * shapes.perturbation.bytes_per_pair()
    residuals = tree_bytes(shapes.state.master)
    momentum = tree_bytes((shapes.state.opt_state, shapes.state.past))
    members = config.population + config.unperturbed
    each = config.num_prompts * config.answers
    jobs = share(config.population * each) + share(config.unperturbed * each)

    left = max(0, int(USED * memory) - weights - residuals - momentum - factors)
    tokens = max(prompt, int(READ_SHARE / ROUNDED * left) // work.token)
    tokens = config.prefill_tokens or min(PREFILL_TOKENS, tokens)
    reading = largest_call(prompt, config.num_prompts, config.rows or jobs, tokens) * work.token
    # Where all rows run at once, those of a pair share its factors; else those of one prompt do.
    together = 2 * config.answers
    shared = pairs * work.group
    whole = left - shared - max(reading, jobs * work.row)
    own = row + work.group / together
    some = min((left - reading) / own, left / (own + work.row))
    cache = config.cache_bytes or max(whole if whole >= jobs * row else int(some) * row, 0)
    rows = min(jobs, config.rows or cache // row)
    groups = pairs if rows == jobs else -(-rows // together)
    taken = Taken(
        weights=weights,
        residuals=residuals,
        momentum=momentum,
        factors=factors + groups * work.group,
        cache=rows * row,
        reading=reading,
        writing=rows * work.row,
        updating=estimated_update(config, shapes.perturbation),
    )
    return GenerationPlan(
        memory=memory,
        taken=taken,
        members=members,
        jobs=jobs,
        rows=rows,
        cache_bytes=cache,
        prefill_tokens=tokens,
        seconds=rates and _seconds(config, shapes, taken, (jobs, rows, prompt_tokens), rates),
        devices=devices,
    )


def _seconds(
    config: FinetuneConfig,
    shapes: Shapes,
    taken: Taken,
    counts: tuple[int, int, int],
    rates: Rates,
) -> dict[str, float]:
    """By phase: two FLOPs per weight and token, or the bytes that pass where these take longer.

    Every answer is as long as it may be. The update sums the pairs of all generations of momentum,
    in two passes.
    """
    jobs, rows, prompt_tokens = counts
    # Of a mixture all experts, as on a GPU.
    flops = 2.0 * tree_numbers([x for x in jax.tree.leaves(shapes.params) if len(x.shape) > 1])
    bandwidth = rates.device_update * UPDATE_BYTES
    steps = -(-jobs // max(1, rows)) * (config.max_tokens or 1)
    step = max((taken.weights + taken.cache / 2) / bandwidth, rows * flops / rates.flops)
    evolved = evolved_bytes(shapes.perturbation) / 4
    past = momentum_of(config)
    generations = 1 if past is None else past.generations
    summed = 2.0 * evolved * config.population / 2 * (config.rank or 1) * 2 * generations
    return {
        "reading prompts": jobs * prompt_tokens * flops / rates.flops,
        "writing answers": steps * step,
        "updating weights": summed / rates.flops + 2 * taken.weights / bandwidth,
    }
