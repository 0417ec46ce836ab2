"""Evolution of models bigger than the device: weights pass through it once per generation.

Only forward passes are needed, so one passage of the weights serves the whole population: while a
layer is on the device every member runs through it, and the step that the last generation's fitness
decided is taken on the way. Per weight of two bytes, two bytes go to the device per generation and
two come back; nothing else of the size of the model exists. The members, the step and the result
are those of `sr.eggroll` or `lattice` on the whole model: equal in integers, and in floats but for
the order of sums.

The state of an evolved model in two places: layers in a store, the rest on the device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from springroll.errors import InputError
from springroll.evolve.strategy import EvolutionState, Strategy
from springroll.memory import spelt
from springroll.models.protocols import Metrics, Stages, checked_stages
from springroll.stream.conveyor import Conveyor, Stop
from springroll.stream.layered_strategy import (
    ByPath,
    LayeredStrategy,
    by_layers,
    tree_of,
    with_leaves,
)
from springroll.stream.link import Link
from springroll.stream.population_programs import MemberSeed, PopulationPrograms, chunks
from springroll.stream.saved_activations import Activations
from springroll.stream.store import Fields, HostStore, MappedStore
from springroll.trees import PyTree, map_named, named_leaves, tree_bytes

T = TypeVar("T")


def initial_parts(
    layered: LayeredStrategy, link: Link, key: Array, params: PyTree
) -> tuple[HostStore, EvolutionState]:
    """(store of the layers, state of the rest) of generation 0, made one layer at a time."""
    stack, init = layered.stack, jax.jit(layered.for_layer.init)
    store = HostStore(link)
    for index in range(layered.layers):
        weights = jax.tree.map(lambda x, i=index: np.asarray(x[i]), params[stack])
        fields: ByPath = {"weights": weights, "state": {}}
        if layered.stacked:
            layer = init(key, {stack: jax.tree.map(lambda x: x[None], weights)})
            fields |= {"state": layered.fields(layer)["state"]}
        store.append(fields)
    return store, initial_rest(layered, link, key, params)


def initial_rest(
    layered: LayeredStrategy, link: Link, key: Array, params: PyTree
) -> EvolutionState:
    """The state of the rest at generation 0, on the device."""
    others = {name: x for name, x in params.items() if name != layered.stack}
    return jax.jit(layered.for_rest.init)(key, jax.device_put(others, link.on_device))


def parts_of_state(
    layered: LayeredStrategy, link: Link, state: EvolutionState
) -> tuple[HostStore, EvolutionState]:
    """The same out of a state of the whole model."""
    arrays = named_leaves(state)
    store = HostStore(link)
    for index in range(layered.layers):
        store.append(layered.layer_slice(arrays, index))
    return store, jax.device_put(with_leaves(layered.other, arrays), link.on_device)


class LazyArray:
    """An array of a state that is read when NumPy asks for it, as a checkpoint does.

    As with a `jax.Array`, its value may still be to come: reading one may make layers pass.
    """

    def __init__(self, like: jax.ShapeDtypeStruct, read: Callable[[], np.ndarray]):
        self.shape, self.dtype = like.shape, like.dtype
        self._read = read

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._read(), dtype)


Visit: TypeAlias = Callable[[PyTree, PyTree], PyTree]


class Due(NamedTuple):
    """A step that layers still have to take: what their state shares with the rest's, and the
    fitness (N,)."""

    shared: ByPath
    fitness: Array


def stream_population(
    strategy: Strategy,
    stages: Stages,
    params: PyTree,
    *,
    key: Array,
    per_member: bool = False,
    device_budget: int | None = None,
    depth: int = 3,
    link: Link | None = None,
) -> StreamedPopulation:
    """Evolve a model whose layers are in host memory or in files, layer by layer.

        engine = stream_population(strategy, decoder, params, key=key)
        for tokens in batches:
            fitness, _ = engine.evaluate(tokens)
            engine.tell(fitness)
        state = engine.state()

    Args:
        strategy: `sr.eggroll` or `lattice`; see below for those that cannot.
        stages: the model in parts, see `springroll.models.Stages`.
        params: a dictionary with stacked layers, on the host; they are copied. Or a `MappedStore`:
            files are only read, and the steps since are taken anew whenever a layer passes, so
            that a generation costs more the more there were.
        key: as for `strategy.init`.
        per_member: whether inputs have a leading axis of members; else all get the same.
        device_budget: bytes on the device for layers, rest and what is between layers; activations
            beyond it wait on the host. What a program needs while it runs is bounded by the
            strategy's `pairs_per_chunk` and comes on top.
        depth: layers on the device at a time: 3 keeps it busy, 1 takes least.

    Raises:
        InputError: the model lacks a part; the strategy needs all parameters together; its
            optimizer mixes numbers, or keeps state per weight that a file cannot take back; the
            budget does not hold the rest and one layer.
    """
    link = (Link() if link is None else link).to_one("a population")
    mapped = params if isinstance(params, MappedStore) else None
    tree = mapped.params if mapped else params
    parts, depth = layered_within(
        strategy, stages, tree, device_budget, depth, written=mapped is None
    )
    if mapped:
        store, rest = mapped, initial_rest(parts, link, key, tree)
    else:
        store, rest = initial_parts(parts, link, key, params)
    return StreamedPopulation(parts, stages, store, rest, link, depth, device_budget, per_member)


def layered_within(
    strategy: Strategy,
    stages: Stages,
    params: PyTree,
    device_budget: int | None,
    depth: int = 3,
    written: bool = True,
) -> tuple[LayeredStrategy, int]:
    """The strategy in parts and the depth that the budget holds; no array is made.

    `params` may be shapes. Raises InputError for all that `stream_population` refuses.
    """
    parts = by_layers(strategy, tree_of(params), checked_stages(stages, params).stack)
    if parts.stacked and not written:
        raise InputError(
            f"the strategy keeps {parts.stacked[0]} for every weight, which a file that is only "
            "read cannot take back; use optax.sgd without momentum and master='stochastic' or None"
        )
    return parts, _depth_within(device_budget, parts, depth, written)


class StreamedPopulation:
    """A population and a model that passes through the device; made by `stream_population`.

    `evaluate` and `tell` in turn make a generation. The step of the layers is due from `tell` until
    they pass again, which reading the `state` makes them do.
    """

    def __init__(
        self,
        parts: LayeredStrategy,
        stages: Stages,
        store: HostStore | MappedStore,
        rest: EvolutionState,
        link: Link,
        depth: int,
        device_budget: int | None,
        per_member: bool,
    ):
        self.layered, self.link = parts, link
        self.programs = PopulationPrograms(stages, parts, per_member)
        self.chunks = chunks(self.programs.pairs, self.programs.limit)
        self._depth, self._budget = depth, device_budget
        self._begin(store, rest)

    def evaluate(self, inputs: PyTree, memory: PyTree = None) -> tuple[Array, PyTree]:
        """Fitness (N,) of every member on `inputs`, and what members remember, (N, layers, ...).

        `memory` is given up, as by a jitted function that donates it.
        """
        programs, rest = self.programs, self._rest.params
        seed = MemberSeed(self._rest.seed, self._rest.generation)
        inputs = jax.device_put(inputs, self.link.on_device)
        waiting, stays = Activations(self.link), True
        for number, (start, pairs) in enumerate(self.chunks):
            x = programs.embed(rest, seed, inputs, start, pairs)
            if number == 0:
                stays = self._stays(x, pairs)
            waiting.put(number, x, stays)

        def take(number: int) -> PyTree:
            waiting.prefetch(number)
            waiting.prefetch(number + 1)  # one ahead of its turn
            return waiting.pop(number)

        def visit(index: np.int32, weights: PyTree) -> PyTree:
            nonlocal memory
            token = None
            for number, (start, pairs) in enumerate(self.chunks):
                x = take(number)
                x, memory, token = programs.forward(weights, seed, x, memory, start, index, pairs)
                waiting.put(number, x, stays)
            return token

        self._pass(visit)
        scores = [
            programs.score(rest, seed, take(number), inputs, start, pairs)
            for number, (start, pairs) in enumerate(self.chunks)
        ]
        return jnp.concatenate(scores), memory

    def tell(self, fitness: Array | np.ndarray) -> Metrics:
        """The step of the generation that was evaluated: of the rest now, of layers when they pass.

        Metrics are those of the strategy, but for what it measures on the weights.
        """
        if self.writable:
            self.settle()
        fitness = jnp.asarray(fitness)
        strategy, before = self.layered.for_rest, self._rest
        self._rest, metrics = strategy.tell(before, strategy.ask(before), fitness)
        self._due.append(Due(self.layered.shared(before), fitness))
        self.generation += 1
        return {name: x for name, x in metrics.items() if name not in ("moved", "step_ratio")}

    def apply(
        self,
        embed: Callable[[PyTree, PyTree], PyTree],
        block: Callable[[PyTree, PyTree, np.int32], PyTree],
        finish: Callable[[PyTree, PyTree, PyTree], T],
    ) -> Callable[[PyTree], T]:
        """A function of (inputs) that runs the weights themselves, not members, layer by layer.

        Args:
            embed: (rest, inputs) -> x.
            block: (one layer, x, its index () int32) -> x.
            finish: (rest, x, inputs) -> the result.
        """
        embed, block, finish = map(self.programs.compiled, (embed, block, finish))

        def run(inputs: PyTree) -> PyTree:
            x = embed(self._rest.params, inputs)

            def visit(index: np.int32, weights: PyTree) -> PyTree:
                nonlocal x
                x = block(weights, x, index)
                return x

            self._pass(visit)
            return finish(self._rest.params, x, inputs)

        return run

    def settle(self) -> None:
        """Take the step that is due, if one is, by a passage of the layers for that alone.

        Steps on files that are only read stay due for ever.
        """
        if self._due and self.writable:
            self._pass(lambda index, weights: None)

    @property
    def writable(self) -> bool:
        """Whether layers that took a step are kept."""
        return isinstance(self._store, HostStore)

    # The state of the whole model

    def state(self) -> EvolutionState:
        """As `strategy.tell` on the whole model would have it, in NumPy arrays."""
        return jax.tree.map(np.asarray, self.lazy_state())

    def lazy_state(self) -> EvolutionState:
        """The same in arrays that are read when they are looked at, before the next `tell`."""

        def one(path: str, like: jax.ShapeDtypeStruct) -> LazyArray:
            generation = self.generation

            def read() -> np.ndarray:
                if generation != self.generation:
                    raise RuntimeError(f"{path} is of a state that has since moved on")
                return self.array(path)

            return LazyArray(like, read)

        return map_named(one, self.layered.whole)

    def array(self, path: str) -> np.ndarray:
        """One array of the state by its path, such as "params/layers/mlp/up_proj"."""
        rest = named_leaves(self._rest)
        if path in rest:
            return np.asarray(rest[path])
        self.settle()
        prefix = f"params/{self.layered.stack}/"
        weight = path.startswith(prefix)
        pick = lambda fields: np.asarray(
            named_leaves(fields["weights"])[path.removeprefix(prefix)]
            if weight
            else fields["state"][path]
        )
        layers: list[np.ndarray] = []
        if self.writable:
            for index in range(self.layered.layers):
                layers.append(pick(self._store.arrays(index, ("weights", "state"))))
        else:
            self._pass(lambda index, weights: layers.append(pick({"weights": weights})))
        return np.stack(layers)

    def load(self, state: EvolutionState) -> None:
        """Go on from the state of the whole model, of a streamed run or of any other."""
        if not self.writable:
            raise InputError("layers in files that are only read cannot be given another state")
        self._begin(*parts_of_state(self.layered, self.link, state))

    def _begin(self, store: HostStore | MappedStore, rest: EvolutionState) -> None:
        self._store, self._rest = store, rest
        self.conveyor = Conveyor(store, self.link, self._depth)
        self._due: list[Due] = []
        self._moved: set[int] = set()  # layers that took the step that is due
        self.generation = int(rest.generation)

    def _pass(self, visit: Visit) -> None:
        """Every layer once, in order, the due steps taken before it is visited."""
        fields = ("weights", "state") if self._due else ("weights",)
        returning: deque[tuple[int, Future[Fields]]] = deque()
        for passing in self.conveyor.walk([Stop(i, fields) for i in range(self.layered.layers)]):
            layer, index = passing.arrays, np.int32(passing.bundle)
            if passing.bundle not in self._moved:
                for due in self._due:
                    layer, token = self.programs.update(layer, due.shared, due.fitness, index)
                    passing.until(token)
                if self._due and self.writable:
                    returning.append((passing.bundle, self.link.fetch(layer)))
            passing.until(visit(index, layer["weights"]))
            while len(returning) > 1:
                self._returned(*returning.popleft())
        while returning:
            self._returned(*returning.popleft())
        if self.writable:
            self._due.clear()
            self._moved.clear()

    def _returned(self, bundle: int, fields: Future[Fields]) -> None:
        assert isinstance(self._store, HostStore)
        self._store.replace(bundle, fields.result())
        self._moved.add(bundle)

    def _stays(self, x: PyTree, pairs: int) -> bool:
        """Whether the activations of all members fit on the device, by those of some pairs."""
        if self._budget is None:
            return True
        left = self._budget - resident_bytes(self.layered, self._depth, self.writable)
        return tree_bytes(x) * self.programs.pairs <= left * pairs


def resident_bytes(parts: LayeredStrategy, depth: int, written: bool) -> int:
    """Bytes of weights and state on the device: the rest, a window of layers, and two that took
    their step and are on the way back (or one that took it and is not kept)."""
    layer = tree_bytes(parts.one)
    return tree_bytes(parts.other) + layer * (depth + (2 if written else 1))


def _depth_within(budget: int | None, parts: LayeredStrategy, depth: int, written: bool) -> int:
    """The largest depth up to the wanted one that the budget holds."""
    if depth < 1:
        raise InputError(f"depth is {depth}; expected 1 or more layers on the device")
    for fewer in range(depth, 0, -1):
        if budget is None or resident_bytes(parts, fewer, written) <= budget:
            return fewer
    raise InputError(
        f"device_budget is {spelt(budget or 0)}; a layer of {spelt(tree_bytes(parts.one))} on its "
        f"way and the rest of {spelt(tree_bytes(parts.other))} take "
        f"{spelt(resident_bytes(parts, 1, written))}; give at least that much"
    )
