"""What a run of `springroll train` is made of: text, model, learner, their memory, and the task."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from springroll.errors import InputError
from springroll.models.decoder import Decoder, decoder
from springroll.models.decoder_config import DecoderConfig, named
from springroll.tasks.baselines import baselines
from springroll.tasks.corpus import Corpus, load_corpus
from springroll.tasks.text import Streams, streams, validation
from springroll.train.backprop import TrainConfig
from springroll.train.learners import Learner
from springroll.train.memory import (
    Memory,
    available_bytes,
    parse_bytes,
    refuse_too_big,
    step_memory,
    tree_bytes,
)
from springroll.train.optimizers import learner_for
from springroll.train.task import Curve, Task

BYTES = 256  # the vocabulary of raw text
LOST_LIMIT = 10  # steps in a row whose loss is not finite, and the run stops
AXIS = "batch"  # of the mesh


class Training(NamedTuple):
    """Everything a run is made of."""

    task: Task
    model: Decoder
    learner: Learner
    corpus: Corpus
    lines: dict[str, float]  # bits per byte to beat
    memory: Memory


class Placement(NamedTuple):
    """Where states and batches live: the same state on every device, a batch split over them."""

    state: NamedSharding
    batch: NamedSharding


def build(config: TrainConfig) -> Training:
    """Load the text, make model and learner, see that a step fits, and join them to a task."""
    corpus = load_corpus(config.data)
    text = streams(corpus.train, config.batch * config.accumulate, config.tokens)
    sample = validation(corpus, config.valid_streams, config.valid_tokens)
    lines = baselines(sample)
    placement = place(config)
    model, learner = make(config)
    memory = memory_of(config, learner, placement)
    refuse_too_big(memory, budget(config), alternatives(config, placement))
    task = text_task(config, model, learner, text, sample, lines, corpus.digest, placement)
    return Training(task, model, learner, corpus, lines, memory)


def make(config: TrainConfig) -> tuple[Decoder, Learner]:
    """The model of a config and what trains it; nothing is allocated."""
    model = decoder(byte_level(config.model), remat=config.remat)
    return model, learner_for(config, model)


def byte_level(name: str) -> DecoderConfig:
    """The configuration of that name with the 256 bytes for a vocabulary."""
    return dataclasses.replace(named(name), vocab=BYTES)


def place(config: TrainConfig) -> Placement:
    """The devices of a run: as asked; by default all accelerators, or one CPU."""
    found = jax.devices()
    wanted = config.devices or (1 if found[0].platform == "cpu" else len(found))
    if wanted > len(found):
        raise InputError(f"devices is {wanted}; this process has {len(found)}")
    if config.batch % wanted:
        raise InputError(f"batch is {config.batch}; it must divide evenly over {wanted} devices")
    mesh = Mesh(np.array(found[:wanted]), (AXIS,))
    return Placement(NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS)))


def memory_of(config: TrainConfig, learner: Learner, placement: Placement) -> Memory:
    """The memory the compiler plans for a step. The program is kept: the first step runs it."""
    on = lambda sharding: lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    shapes = jax.eval_shape(learner.init, jax.random.key(0))
    rows = config.accumulate * config.batch
    batch = jax.ShapeDtypeStruct((rows, config.tokens + 1), np.uint8)
    lowered = learner.lower(jax.tree.map(on(placement.state), shapes), on(placement.batch)(batch))
    weights = tree_bytes(jax.eval_shape(learner.params, shapes))
    return step_memory(
        lowered.compile(),
        weights=weights,
        state=tree_bytes(shapes) - weights,
        gradients=learner.gradient_bytes,
    )


def budget(config: TrainConfig) -> int | None:
    """Bytes a step may need on a device."""
    return available_bytes() if config.memory is None else parse_bytes(config.memory)


def alternatives(config: TrainConfig, placement: Placement) -> Iterator[tuple[str, int]]:
    """Options that need less memory, and the peak of each, least change first; compiled one by
    one, as asked for."""
    changes: list[dict[str, Any]] = [
        {"remat": True},
        {"remat": True, "batch": placement.state.mesh.size},
        {"remat": True, "optimizer": "lowgrad"},
        {"remat": True, "optimizer": "apollo-mini", "layerwise": True, "accumulate": 1},
        {"remat": True, "optimizer": "apollo-mini", "layerwise": True, "accumulate": 1, "batch": 1},
    ]
    for change in changes:
        other = dataclasses.replace(config, **change)
        if other != config:
            yield flags(change, config), memory_of(other, make(other)[1], placement).peak


def flags(change: dict[str, Any], config: TrainConfig) -> str:
    """The change of a config as options of a command line."""
    given = {name: value for name, value in change.items() if getattr(config, name) != value}
    spelt = lambda name: "--" + name.replace("_", "-")
    return " ".join(
        spelt(name) if value is True else f"{spelt(name)} {value}" for name, value in given.items()
    )


def text_task(
    config: TrainConfig,
    model: Decoder,
    learner: Learner,
    text: Streams,
    sample: np.ndarray,
    lines: dict[str, float],
    digest: str,
    placement: Placement,
) -> Task:
    """The loop's view: one member, whose carry is the whole training state."""

    def init() -> tuple[None, Any]:
        return None, jax.device_put(learner.init(jax.random.key(config.seed)), placement.state)

    def evaluate(state: None, members: None, carry: Any, rows: np.ndarray) -> Any:
        tokens = jax.device_put(rows, placement.batch)
        carry, figures = learner.step(carry, tokens)
        bits = figures["loss"] / np.float32(math.log(2))
        return -figures["loss"][None], carry, {**figures, "train_bits_per_byte": bits}

    nats = jax.jit(lambda params: mean_nats(model, params, sample, config.batch))
    return Task(
        init=init,
        batch=text.batch,
        ask=lambda state: None,
        evaluate=evaluate,
        tell=lambda state, members, fitness: (None, {}),
        validate=lambda _, carry: {
            "valid_bits_per_byte": nats(learner.params(carry)) / np.float32(math.log(2))
        },
        pop_size=1,
        tokens=config.accumulate * config.batch * config.tokens,
        seed=config.seed,
        lost_limit=LOST_LIMIT,
        identity={"corpus": digest},
        summary=lines,
        curve=Curve(
            lines={name.removesuffix("_bits_per_byte"): bits for name, bits in lines.items()},
            title=f"{config.model}, {model.config.parameters:,} parameters, {config.optimizer}",
        ),
    )


def mean_nats(model: Decoder, params: Any, sample: np.ndarray, rows: int) -> Array:
    """Mean nats per token of `sample` (n, T + 1), at most `rows` rows at a time."""
    count = sample.shape[0]
    together = next(n for n in range(min(rows, count), 0, -1) if count % n == 0)
    pieces = sample.reshape(-1, together, sample.shape[1])
    return jnp.mean(lax.map(lambda piece: model.loss(params, piece)[1]["nats"], pieces))
