"""Pretraining whose layers stay on the host and pass through the device once per generation.

The loop sees the task it knows, and run folders are the same: an integer model's journal and
checkpoints are those of the resident run, byte for byte, and either kind of run goes on with the
other's. A checkpoint takes the step that is due by a passage of its own.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from springroll.errors import InputError
from springroll.evolve.strategy import EvolutionState, Strategy
from springroll.memory import available_bytes, spelt
from springroll.models.cross_entropy import bits_per_byte
from springroll.models.egg import Egg
from springroll.models.protocols import read_part
from springroll.run.task import Batch, Carry, Metrics, Task
from springroll.stream.streamed_population import (
    StreamedPopulation,
    layered_within,
    stream_population,
)
from springroll.trees import PyTree, tree_bytes

if TYPE_CHECKING:
    from springroll.pretrain.config import PretrainConfig


def must_stream(config: "PretrainConfig", strategy: Strategy, params: PyTree) -> bool:
    """Whether layers pass through the device: as asked, or because the state does not fit it.

    Raises:
        InputError: the state is to be resident and does not fit `device_memory`.
    """
    if config.engine == "stream":
        return True
    memory = config.device_bytes
    if memory is None and config.engine == "auto":
        memory = available_bytes()
    needed = tree_bytes(jax.eval_shape(strategy.init, jax.random.key(0), params))
    fits = memory is None or needed <= memory
    if not fits and config.engine == "resident":
        raise InputError(
            f"device_memory is {config.device_memory}; weights and state take {spelt(needed)}: "
            "give more, or --engine stream"
        )
    return not fits


def streamed_task(
    config: "PretrainConfig", model: Egg, strategy: Strategy, resident: Task, sample: np.ndarray
) -> Task:
    """The task `resident` with its weights in host memory; `sample` is the validation text."""
    budget = available_bytes() if config.device_bytes is None else config.device_bytes
    params = jax.eval_shape(model.init, jax.random.key(0))
    layered_within(strategy, model, params, budget)  # what cannot be, said at once
    engine = Engine(config.seed, budget, model, strategy)
    validate: list[Callable[[PyTree], Metrics]] = []  # compiled once the engine is there
    members_per_stream = config.pop_size // config.num_streams
    unit = model.bits_scale * config.tokens_per_member

    def evaluate(
        state: EvolutionState, members: None, carry: Carry, batch: Batch
    ) -> tuple[Array, Carry, Metrics]:
        tokens = np.repeat(batch, members_per_stream, axis=0)
        fitness, carry = engine.at(state).evaluate(tokens, carry)
        bits = -jnp.mean(fitness.astype(jnp.float32)) / unit
        return fitness, carry, {"train_bits_per_byte": bits}

    def validated(state: EvolutionState, carry: Carry) -> Metrics:
        now = engine.at(state)
        if not validate:
            validate.append(now.apply(*validation(model)))
        return validate[0](sample)

    return dataclasses.replace(
        resident,
        init=lambda: (engine.start(), model.state((config.pop_size,))),
        ask=lambda state: None,
        evaluate=evaluate,
        blocks="its layers pass through the device (--engine stream)",
        tell=lambda state, members, fitness: engine.tell(state, fitness),
        validate=validated,
    )


class Engine:
    """A streamed population behind states, which the loop hands from call to call.

    The state that came last is the engine's own; any other, such as one from a checkpoint, is
    loaded first.
    """

    def __init__(self, seed: int, budget: int | None, model: Egg, strategy: Strategy):
        self._seed, self._budget = seed, budget
        self._model, self._strategy = model, strategy
        self._streamed: StreamedPopulation | None = None
        self._last: EvolutionState | None = None

    def start(self) -> EvolutionState:
        """Generation 0, in NumPy arrays."""
        with jax.default_device(host()):
            key = jax.random.key(self._seed)
            params = self._model.init(jax.random.fold_in(key, 0))
            key = jax.random.fold_in(key, 1)
        self._streamed = stream_population(
            self._strategy,
            self._model,
            params,
            key=key,
            per_member=True,
            device_budget=self._budget,
        )
        self._last = self._streamed.state()
        return self._last

    def at(self, state: EvolutionState) -> StreamedPopulation:
        """The engine in that state."""
        if self._streamed is None:
            self.start()
        assert self._streamed is not None
        if state is not self._last:
            self._streamed.load(state)
            self._last = state
        return self._streamed

    def tell(self, state: EvolutionState, fitness: np.ndarray) -> tuple[EvolutionState, Metrics]:
        """The step; arrays of the new state are read when a checkpoint looks at them."""
        now = self.at(state)
        metrics = now.tell(fitness)
        self._last = now.lazy_state()
        return self._last, metrics


def host():
    """Where arrays are made that may be too big for the device; None if JAX was told to have no
    processor."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def validation(
    model: Egg,
) -> tuple[Callable[..., PyTree], Callable[..., PyTree], Callable[..., Metrics]]:
    """(embed, block, finish) over rows (n, T + 1) that each begin without memory."""

    def embed(rest: PyTree, rows: Array) -> PyTree:
        return jax.vmap(lambda row: model.embed(rest, read_part(row)))(rows)

    def block(layer: PyTree, x: PyTree, index: Array) -> PyTree:
        fresh = model.state()[0]
        return jax.vmap(lambda x: model.block(layer, x, index, fresh)[0])(x)

    def finish(rest: PyTree, x: PyTree, rows: Array) -> Metrics:
        logits = jax.vmap(lambda x: model.natural(model.stored_logits(rest, x)))(x)
        return {"valid_bits_per_byte": bits_per_byte(logits, rows)}

    return embed, block, finish
