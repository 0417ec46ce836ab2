"""Which arrays of a strategy's state go with the layers, and which stay with the rest.

The state of the whole model is compared with those of one layer and of the rest, path by path. An
array that a layer has and the rest has not is stacked; the others (the rest's own, the seed, the
generation, counters of the optimizer) exist once.
"""

from dataclasses import dataclass
from typing import TypeAlias

import jax
import numpy as np
from jax import Array

from springroll.errors import InputError
from springroll.evolve.layer_population import layer_of, rest_of
from springroll.evolve.perturbation import Perturbation
from springroll.evolve.strategy import EvolutionState, Population, Strategy
from springroll.models.protocols import stack_depth
from springroll.trees import PyTree, map_named, named_leaves, path_of

ByPath: TypeAlias = dict[str, PyTree]


@dataclass(frozen=True)
class LayeredStrategy:
    """A strategy in two: for one layer (parameters `{stack: leaves with a first axis of 1}`) and
    for all else; and how their states join.

    layers: how many; whole, one, other: abstract states of the model, a layer and the rest.
    """

    stack: str
    layers: int
    for_layer: Strategy
    for_rest: Strategy
    population: Population
    perturbations: tuple[Perturbation, Perturbation]  # of a layer, of the rest
    whole: EvolutionState
    one: EvolutionState
    other: EvolutionState

    @property
    def stacked(self) -> tuple[str, ...]:
        """Paths of a state's arrays that have a layer axis, but for the weights."""
        shared = named_leaves(self.other)
        return tuple(
            p for p in named_leaves(self.one) if p not in shared and not self._is_weight(p)
        )

    def shared(self, rest: EvolutionState) -> ByPath:
        """What a layer's state takes from that of the rest."""
        arrays = named_leaves(rest)
        return {path: arrays[path] for path in named_leaves(self.one) if path in arrays}

    def layer_state(self, fields: ByPath, shared: ByPath) -> EvolutionState:
        """The state of a layer out of its bundle (no layer axis) and what is shared."""
        stacked = jax.tree.map(lambda x: x[None], fields)
        weights = named_leaves({"params": {self.stack: stacked["weights"]}})
        arrays = weights | stacked.get("state", {}) | shared
        return with_leaves(self.one, arrays)

    def fields(self, layer: EvolutionState) -> ByPath:
        """The bundle of a layer's state: weights as a tree, other stacked arrays by path."""
        arrays = named_leaves(layer)
        state = {path: arrays[path] for path in self.stacked}
        return jax.tree.map(lambda x: x[0], {"weights": layer.params[self.stack], "state": state})

    def layer_slice(self, arrays: ByPath, index: int) -> ByPath:
        """The bundle of layer `index` out of the arrays of the whole state by path."""
        prefix = f"params/{self.stack}/"
        paths, tree = jax.tree_util.tree_flatten_with_path(self.one.params[self.stack])
        weights = [np.asarray(arrays[prefix + path_of(path)])[index] for path, _ in paths]
        state = {path: np.asarray(arrays[path])[index] for path in self.stacked}
        return {"weights": jax.tree.unflatten(tree, weights), "state": state}

    def _is_weight(self, path: str) -> bool:
        return path.startswith(f"params/{self.stack}/")


def by_layers(strategy: Strategy, params: PyTree, stack: str) -> LayeredStrategy:
    """`strategy` for the layers of `params` (arrays or their shapes) and for the rest.

    Raises:
        InputError: the strategy needs all parameters together, or is for several devices; the
            stacks differ in length; an optimizer's state belongs to no single layer.
    """
    if isinstance(strategy.parts, str):
        raise InputError(
            f"this strategy cannot evolve layer by layer: {strategy.parts}; evolve the model whole"
        )
    population, make, step = strategy.parts
    if step is not None and step.limit is not None:
        raise InputError(
            "this strategy cannot evolve layer by layer: max_step_ratio bounds the step of all "
            "parameters; evolve the model whole"
        )
    if population.mesh is not None:
        raise InputError("streaming is for one device; make the strategy without a mesh")
    layers = stack_depth(params[stack], stack)
    others = {name: x for name, x in params.items() if name != stack}
    cut = lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    whole = population.perturbation(params)
    of_layer = population.of_part(layer_of(whole, stack))
    of_rest = population.of_part(rest_of(whole, stack))
    for_layer, for_rest = make(of_layer), make(of_rest)
    key = jax.eval_shape(lambda: jax.random.key(0))
    parts = LayeredStrategy(
        stack,
        layers,
        for_layer,
        for_rest,
        population,
        (of_layer.perturbation(None), of_rest.perturbation(None)),
        jax.eval_shape(strategy.init, key, params),
        jax.eval_shape(for_layer.init, key, {stack: jax.tree.map(cut, params[stack])}),
        jax.eval_shape(for_rest.init, key, others),
    )
    _check(parts)
    return parts


def with_leaves(like: PyTree, arrays: ByPath) -> PyTree:
    """The tree of the structure of `like` with those leaves."""
    return map_named(lambda path, _: arrays[path], like)


def tree_of(shapes: PyTree) -> PyTree:
    """Arrays as their shapes."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), shapes)


def _check(parts: LayeredStrategy) -> None:
    whole, one, other = (
        named_leaves(parts.whole),
        named_leaves(parts.one),
        named_leaves(parts.other),
    )
    for path, leaf in whole.items():
        part: Array | None = other.get(path, one.get(path))
        shape = None if part is None else part.shape
        if part is not None and path not in other:
            shape = (parts.layers, *part.shape[1:]) if part.shape[:1] == (1,) else None
        if shape != leaf.shape:
            raise InputError(
                f"{path} {list(leaf.shape)} belongs to no single layer; use an optimizer that "
                "keeps its state per parameter, or evolve the model whole"
            )
