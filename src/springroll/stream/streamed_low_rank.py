"""`sr.lowgrad` on a stream: S, moments, projectors and all that is no matrix stay on the device.

A matrix W of a layer passes through the device as its base, W + P S is computed with it there, and
only S is differentiated. Between two refreshes nothing goes back to the host: two bytes per
bfloat16 parameter and pass, and no optimizer state that follows the model's size. At a refresh the
layers whose turn it is pass once more, P S is added to them, and they return.

A layer whose matrices are W + P S: W arrives, P and S are there; and its change of subspace.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from springroll.errors import InputError
from springroll.models.protocols import Metrics, Stages
from springroll.stream.conveyor import Conveyor, Passing, Stop
from springroll.stream.disk import Disk
from springroll.stream.engine import WEIGHTS, Engine
from springroll.stream.fill_store import Tensors
from springroll.stream.link import Link
from springroll.stream.store import HostStore
from springroll.stream.stored_leaves import stacked
from springroll.stream.update import Gradient, Held
from springroll.subspace import moments, refresh, schedule
from springroll.subspace.leaves import Layout
from springroll.subspace.stored_basis import met
from springroll.subspace.streams import place
from springroll.subspace.trainer import LowGradState, Trainer, listed
from springroll.thin.factored_array import Factored
from springroll.thin.transform import factored
from springroll.trees import PyTree, map_named

LAYERS = "layers/"


class CollectGradients:
    """An `Update` that only collects."""

    fields = WEIGHTS
    on_host = False

    def __init__(self, layers: int):
        self._layers = layers
        self._gradients: dict[int, PyTree] = {}

    def init(self, weights: PyTree, layer: bool) -> PyTree:
        return ()

    def apply(self, conveyor: Conveyor[HostStore], passing: Passing, gradient: Gradient) -> None:
        self._gradients[passing.bundle] = gradient.values

    def apply_all(self, conveyor: Conveyor[HostStore], held: Held, gradient: Gradient) -> None:
        raise NotImplementedError("the optimizer of the trainer clips")

    def gradient(self) -> PyTree:
        """The gradient of the trainable tree."""
        gradients, self._gradients = self._gradients, {}
        layers = _stacked([gradients[i] for i in range(self._layers)])
        return {**gradients[self._layers], "layers": layers}


class LowRankLayers:
    """What of a layer is on the device anyway, and how it makes weights with what arrives."""

    def __init__(self, layout: Layout):
        self._layout = layout
        self._thin = layout.thin
        self.turn = jax.jit(self._turn, static_argnums=0, donate_argnums=(2, 3))
        self.rotate = jax.jit(self._rotate, static_argnums=4, donate_argnums=0)

    def set_state(self, state: LowGradState) -> None:
        """Compute with this state."""
        self._trainable = dict(self._layout.trainable(state.base, state.low))
        self._stacks = self._trainable.pop("layers")
        self._projectors = state.projectors

    def operands(self, passing: Passing) -> tuple[PyTree, PyTree]:
        bases = passing.arrays["weights"]
        if not bases:
            return self._trainable, None
        at = jnp.int32(passing.bundle)
        moving, projectors = _slice((self._stacks, self._projectors), at)
        return moving, (bases, projectors)

    def join(self, moving: PyTree, still: PyTree) -> PyTree:
        if still is None:
            return moving
        bases, projectors = still
        weight = lambda path, leaf: self._weight(LAYERS + path, leaf, bases, projectors)
        return map_named(weight, moving)

    def _weight(self, path: str, leaf: PyTree, bases: PyTree, projectors: PyTree) -> PyTree:
        if path not in self._thin:
            return leaf
        user = self._thin[path]
        roles = user.roles[1:]
        left, right = place(met(projectors[user.stream]), roles, "sm"), place(leaf, roles, "sn")
        return Factored(bases[path], left, right, None, roles, path=path)

    def _turn(
        self,
        names: tuple[str, ...],
        weights: PyTree,
        projectors: PyTree,
        low: PyTree,
        toward: PyTree,
        key: Array,
        layer: Array,
    ) -> tuple[PyTree, PyTree, PyTree, dict[str, Array]]:
        """(weights of the layer, projectors, low, change of basis) of the streams of these
        names."""
        weights, projectors, low, change = dict(weights), dict(projectors), dict(low), {}
        for stream in self._layout.streams:
            if stream.name not in names:
                continue
            paths = [user.path for user in stream.users]
            part = {
                "basis": moments.layer_of(projectors[stream.name], layer),
                "change": jnp.zeros((stream.bases[1], stream.rank, stream.rank)),
                "base": {path: weights[path] for path in paths},
                "low": {path: moments.layer_of(low[path], layer) for path in paths},
            }
            done = refresh.refresh_layer(stream, toward[stream.name], key, part, layer)
            weights |= done["base"]
            put = lambda a, new: jax.lax.dynamic_update_index_in_dim(a, new, layer, 0)
            projectors[stream.name] = jax.tree.map(put, projectors[stream.name], done["basis"])
            low |= {path: put(low[path], done["low"][path]) for path in paths}
            change[stream.name] = done["change"]
        return weights, projectors, low, change

    def _rotate(
        self,
        opt: PyTree,
        change: PyTree,
        layers: Mapping[str, Array],
        counts: Mapping[str, Array],
        how: moments.Moments,
    ) -> PyTree:
        return moments.rotated(opt, self._thin, change, layers, counts, how)


class ThinStages:
    """A model's parts, for blocks whose weights are factored."""

    def __init__(self, model: Stages):
        self.stack, self.embed, self.finish = "layers", model.embed, model.finish
        self.block = factored(model.block)


@jax.jit
def _slice(trees: PyTree, at: Array) -> PyTree:
    return moments.layer_of(trees, at)


@jax.jit
def _stacked(trees: list[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


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
        shapes: PyTree,
        *,
        link: Link | None = None,
        depth: int = 3,
        on_device: Sequence[int] = (),
        disk: Disk | None = None,
        on_disk: Sequence[int] = (),
        parts: int = 1,
        kept_inputs: int | None = None,
    ):
        self.trainer, self.layout = trainer, trainer.layout
        self._check()
        self.link = link or Link()
        self.store = HostStore(self.link, on_device, disk, on_disk)
        self._shapes = shapes
        self._bases = {path: _struct(shapes, path) for path in sorted(self.layout.thin)}
        layers = jax.tree.leaves(shapes["layers"])[0].shape[0]
        for _ in range(layers):
            blank = {
                path: np.broadcast_to(np.zeros((), b.dtype), b.shape[1:])
                for path, b in self._bases.items()
            }
            self.store.append({"weights": blank})
        self.store.append({"weights": {}})  # the rest does not stream
        self._collected = CollectGradients(layers)
        self._low_rank = LowRankLayers(self.layout)
        self.engine = Engine(
            ThinStages(model),
            Conveyor(self.store, self.link, depth),
            self._collected,
            parts=parts,
            kept_inputs=kept_inputs,
            join=self._low_rank.join,
            operands=self._low_rank.operands,
        )

    def fill(self, tensors: Tensors) -> LowGradState:
        """The state of step 0, with these weights."""
        bases, others = list(self._bases), {}
        for path, index, values in tensors:
            if path in self._bases:
                leaf = bases.index(path)
                for row in index[:1] or range(self.engine.layers):
                    part = values if index else values[row]
                    self.store.write(row, "weights", leaf, np.asarray(part))
            else:
                shape = _struct(self._shapes, path)
                whole = others.setdefault(path, np.zeros(shape.shape, shape.dtype))
                whole[index] = np.asarray(values)
        stacks = stacked(self.store, "weights", range(self.engine.layers))
        put = lambda path, _: stacks[path] if path in stacks else self._device(others[path])
        params = self.layout.map(put, self._shapes)
        zeros = self.layout.zeros()
        return self.trainer.begin(params, zeros, self.trainer.inner_state(params, zeros))

    def step(self, state: LowGradState, tokens: PyTree) -> tuple[LowGradState, Metrics]:
        """One step on tokens (batch, time + 1), and new subspaces if it is time."""
        self._low_rank.set_state(state)
        step_metrics, _ = self.engine.step(tokens)
        grads = self.layout.map(lambda _, leaf: leaf, self._collected.gradient())
        due = schedule.due(state.schedule)
        began = state.schedule
        state, metrics = self.trainer.apply(state, step_metrics["loss"], grads)
        if any(layers.any() for layers in due.values()):
            state = self._turned(state, due, began)
        return state, {**step_metrics, "grad_norm": metrics["grad_norm"]}

    def score(self, state: LowGradState, tokens: PyTree, rows: int) -> Metrics:
        """Metrics of the model on tokens (n, time + 1), at most `rows` rows at a time."""
        self._low_rank.set_state(state)
        return self.engine.score(tokens, rows)

    def _turned(
        self, state: LowGradState, due: dict[str, np.ndarray], began: schedule.Schedule
    ) -> LowGradState:
        """P S added to the weights of the layers that are due, and new bases for them."""
        trainer, layout = self.trainer, self.layout
        toward = refresh.random_bases(layout, trainer.key(1, began.step))
        key = trainer.key(2, began.step)
        projectors, low = state.projectors, state.low
        change = {
            s.name: np.broadcast_to(
                np.eye(s.rank, dtype=np.float32), (*s.bases[:2], s.rank, s.rank)
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
        return dataclasses.replace(
            state, projectors=projectors, low=low, opt=opt, schedule=schedule.advanced(timing)
        )

    def _return(self, passing: Passing, weights: PyTree) -> None:
        """Changed weights to where they live."""
        if self.store.resident(passing.bundle):
            self.store.replace(passing.bundle, {"weights": weights})
            return
        fetched: Future[PyTree] = self.link.fetch(weights)
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


def _struct(shapes: PyTree, path: str) -> PyTree:
    for name in path.split("/"):
        shapes = shapes[name]
    return shapes
