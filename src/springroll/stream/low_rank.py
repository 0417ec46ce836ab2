"""`sr.lowgrad` on a stream: S, moments, projectors and all that is no matrix stay on the device.

A matrix W of a layer passes through the device as its base, W + P S is computed with it there, and
only S is differentiated. Between two refreshes nothing goes back to the host: two bytes per
bfloat16 parameter and pass, and no optimizer state that follows the model's size. At a refresh the
layers whose turn it is pass once more, P S is added to them, and they return.
"""

from concurrent.futures import Future
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from springroll.errors import InputError
from springroll.lowgrad import refresh, schedule
from springroll.lowgrad.layerwise import Stages
from springroll.lowgrad.lowgrad import State, Trainer, listed
from springroll.stream.conveyor import Conveyor, Passing, Stop
from springroll.stream.engine import WEIGHTS, Engine, Metrics
from springroll.stream.filling import Tensors
from springroll.stream.kept import stacked
from springroll.stream.link import Link
from springroll.stream.low_rank_layers import LAYERS, Gradients, LowRankLayers, ThinStages
from springroll.stream.store import HostStore


class StreamedLowRank:
    """A `lowgrad` trainer whose bases live in host memory; see `Streamed` for the options.

    Args:
        model: its three parts.
        trainer: made for the whole model; all its matrices in subspaces are of layers.
        shapes: its parameters as `jax.ShapeDtypeStruct`s, in the type they are kept in.
    """

    def __init__(
        self,
        model: Stages,
        trainer: Trainer,
        shapes: Any,
        *,
        link: Link | None = None,
        depth: int = 3,
        on_device: Any = (),
        parts: int = 1,
        kept_inputs: int | None = None,
    ):
        self.trainer, self.layout = trainer, trainer.layout
        self._check()
        self.link = link or Link()
        self.store = HostStore(self.link, on_device)
        self._shapes = shapes
        self._bases = {path: _struct(shapes, path) for path in sorted(self.layout.thin)}
        layers = jax.tree.leaves(shapes["layers"])[0].shape[0]
        for _ in range(layers):
            blank = {path: np.zeros(b.shape[1:], b.dtype) for path, b in self._bases.items()}
            self.store.append({"weights": blank})
        self.store.append({"weights": {}})  # the rest does not stream
        self._gradients = Gradients(layers)
        self._low_rank = LowRankLayers(self.layout)
        self.engine = Engine(
            ThinStages(model),
            Conveyor(self.store, self.link, depth),
            self._gradients,
            parts=parts,
            kept=kept_inputs,
            join=self._low_rank.join,
            operands=self._low_rank.operands,
        )

    def fill(self, tensors: Tensors) -> State:
        """The state of step 0, with these weights."""
        bases, others = list(self._bases), {}
        for path, index, values in tensors:
            if path in self._bases:
                leaf = bases.index(path)
                rows = values[None] if index else values
                for row, part in enumerate(rows, start=index[0] if index else 0):
                    self.store.write(row, "weights", leaf, part)
            else:
                shape = _struct(self._shapes, path)
                whole = others.setdefault(path, np.zeros(shape.shape, shape.dtype))
                whole[index] = values
        stacks = stacked(self.store, "weights", range(self.engine.layers))
        put = lambda path, _: stacks[path] if path in stacks else self._device(others[path])
        params = self.layout.map(put, self._shapes)
        zeros = self.layout.zeros()
        opt = self.trainer.optimizer.init(self.layout.trainable(params, zeros))
        began = schedule.start(self.layout.streams, self.trainer.options.period)
        first = refresh.random_bases(self.layout, self.trainer.key(0))
        return State(params, first, zeros, opt, jnp.zeros((), jnp.int32), began)

    def step(self, state: State, tokens: Any) -> tuple[State, Metrics]:
        """One step on tokens (batch, time + 1), and new subspaces if it is time."""
        self._low_rank.now(state)
        found, _ = self.engine.step(tokens)
        grads = self.layout.map(lambda _, leaf: leaf, self._gradients.whole())
        due = schedule.due(state.schedule)
        began = state.schedule
        state, metrics = self.trainer.apply(state, found["loss"], grads)
        if any(layers.any() for layers in due.values()):
            state = self._turned(state, due, began)
        return state, {**found, "grad_norm": metrics["grad_norm"]}

    def score(self, state: State, tokens: Any, rows: int) -> Metrics:
        """Metrics of the model on tokens (n, time + 1), at most `rows` rows at a time."""
        self._low_rank.now(state)
        return self.engine.score(tokens, rows)

    def _turned(self, state: State, due: dict[str, np.ndarray], began: Any) -> State:
        """P S added to the weights of the layers that are due, and new bases for them."""
        trainer, layout = self.trainer, self.layout
        toward = refresh.random_bases(layout, trainer.key(1, began.step))
        key = trainer.key(2, began.step)
        projectors, low = state.projectors, state.low
        change = {
            s.name: np.broadcast_to(
                np.eye(layout.rank, dtype=np.float32), (*s.bases[:2], layout.rank, layout.rank)
            ).copy()
            for s in layout.streams
        }
        chosen = [any(d[i] for d in due.values()) for i in range(self.engine.layers)]
        stops = [Stop(i, WEIGHTS) for i, wanted in enumerate(chosen) if wanted]
        for passing in self.engine.conveyor.walk(stops):
            at = passing.bundle
            names = tuple(name for name, layers in due.items() if layers[at])
            weights, projectors, low, turned = self._low_rank.turn(
                names, passing.arrays["weights"], projectors, low, toward, key, jnp.int32(at)
            )
            self._return(passing, weights)
            for name, c in turned.items():
                change[name][at] = c
        order, counts = listed(due)
        opt = self._low_rank.rotate(state.opt, change, order, counts, trainer.options.moments)
        timing = schedule.refreshed(began, layout.streams, due, trainer.options.turns)
        return state._replace(
            projectors=projectors, low=low, opt=opt, schedule=schedule.advanced(timing)
        )

    def _return(self, passing: Passing, weights: Any) -> None:
        """Changed weights to where they live."""
        if self.store.resident(passing.bundle):
            self.store.replace(passing.bundle, {"weights": weights})
            return
        fetched: Future[Any] = self.link.fetch(weights)
        passing.until(fetched)
        self.store.replace(passing.bundle, {"weights": fetched.result()})

    def _check(self) -> None:
        if self.trainer.options.refresh != "random":
            raise InputError(
                "refresh 'power' computes a second gradient of the whole model; stream with "
                "refresh 'random'"
            )
        outside = [path for path in self.layout.thin if not path.startswith(LAYERS)]
        if outside:
            raise InputError(
                f"{outside[0]} is in a subspace but in no layer; leave it out of select to stream"
            )

    def _device(self, values: np.ndarray) -> Array:
        return jax.device_put(values, self.link.on_device)


def _struct(shapes: Any, path: str) -> Any:
    for name in path.split("/"):
        shapes = shapes[name]
    return shapes
