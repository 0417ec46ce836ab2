"""A layer whose matrices are W + P S: W arrives, P and S are there; and its change of subspace."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from springroll.factored.factored import Factored
from springroll.factored.interpret import factored
from springroll.lowgrad import moments, refresh
from springroll.lowgrad.each_layer import layer_of
from springroll.lowgrad.layerwise import Stages
from springroll.lowgrad.leaves import Layout
from springroll.lowgrad.lowgrad import State
from springroll.lowgrad.streams import place
from springroll.stream.conveyor import Conveyor, Passing
from springroll.stream.engine import WEIGHTS
from springroll.stream.update import Gradient

LAYERS = "layers/"


class Gradients:
    """An `Update` that only collects."""

    fields = WEIGHTS

    def __init__(self, layers: int):
        self._layers = layers
        self._found: dict[int, Any] = {}

    def init(self, weights: Any, layer: bool) -> Any:
        return ()

    def apply(self, conveyor: Conveyor, passing: Passing, gradient: Gradient) -> None:
        self._found[passing.bundle] = gradient.values

    def apply_all(self, conveyor: Conveyor, held: dict[int, Any], gradient: Gradient) -> None:
        raise NotImplementedError("the optimizer of the trainer clips")

    def whole(self) -> Any:
        """The gradient of the trainable tree."""
        found, self._found = self._found, {}
        layers = _stacked([found[i] for i in range(self._layers)])
        return {**found[self._layers], "layers": layers}


class LowRankLayers:
    """What of a layer is on the device anyway, and how it makes weights with what arrives."""

    def __init__(self, layout: Layout):
        self._layout = layout
        self._thin = layout.thin
        self.turn: Any = jax.jit(self._turn, static_argnums=0, donate_argnums=(2, 3))
        self.rotate: Any = jax.jit(self._rotate, static_argnums=4, donate_argnums=0)

    def now(self, state: State) -> None:
        """Compute with this state."""
        self._trainable = dict(self._layout.trainable(state.params, state.low))
        self._stacks = self._trainable.pop("layers")
        self._projectors = state.projectors

    def operands(self, passing: Passing) -> tuple[Any, Any]:
        bases = passing.arrays["weights"]
        if not bases:
            return self._trainable, None
        at = jnp.int32(passing.bundle)
        moving, projectors = _slice((self._stacks, self._projectors), at)
        return moving, (bases, projectors)

    def join(self, moving: Any, still: Any) -> Any:
        if still is None:
            return moving
        bases, projectors = still
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: self._weight(LAYERS + _spelt(path), leaf, bases, projectors), moving
        )

    def _weight(self, path: str, leaf: Any, bases: Any, projectors: Any) -> Any:
        if path not in self._thin:
            return leaf
        user = self._thin[path]
        roles = user.roles[1:]
        left, right = place(projectors[user.stream], roles, "sm"), place(leaf, roles, "sn")
        return Factored(bases[path], left, right, None, roles, path=path)

    def _turn(
        self,
        names: tuple[str, ...],
        weights: Any,
        projectors: Any,
        low: Any,
        toward: Any,
        key: Array,
        layer: Array,
    ) -> tuple[Any, Any, Any, dict[str, Array]]:
        """(weights of the layer, projectors, low, change of basis) of the streams of these
        names."""
        weights, projectors, low, change = dict(weights), dict(projectors), dict(low), {}
        for stream in self._layout.streams:
            if stream.name not in names:
                continue
            paths = [user.path for user in stream.users]
            part = {
                "basis": layer_of(projectors[stream.name], layer),
                "change": jnp.zeros((stream.bases[1], self._layout.rank, self._layout.rank)),
                "base": {path: weights[path] for path in paths},
                "low": {path: layer_of(low[path], layer) for path in paths},
            }
            done = refresh.turn(stream, toward[stream.name], key, part, layer)
            weights |= done["base"]
            put = lambda a, new: jax.lax.dynamic_update_index_in_dim(a, new, layer, 0)
            projectors[stream.name] = put(projectors[stream.name], done["basis"])
            low |= {path: put(low[path], done["low"][path]) for path in paths}
            change[stream.name] = done["change"]
        return weights, projectors, low, change

    def _rotate(self, opt: Any, change: Any, layers: Any, counts: Any, how: Any) -> Any:
        return moments.rotated(opt, self._thin, change, layers, counts, how)


class ThinStages:
    """A model's parts, for blocks whose weights are factored."""

    def __init__(self, model: Stages):
        self.embed, self.finish = model.embed, model.finish
        self.block = factored(model.block)


@jax.jit
def _slice(trees: Any, at: Array) -> Any:
    return layer_of(trees, at)


@jax.jit
def _stacked(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _spelt(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
