"""Updates on the device: weights and optimizer state come with the layer and go back changed."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from springroll.errors import InputError
from springroll.stream.clipping import without_clips
from springroll.stream.conveyor import Conveyor, Passing, Stop
from springroll.stream.homes import writable
from springroll.stream.rest_pieces import Piece, pieces
from springroll.stream.store import HostStore
from springroll.stream.update import Gradient, Held, or_fail
from springroll.subspace.inner_reads import check_each_by_itself
from springroll.trees import PyTree, path_of

Adjust: TypeAlias = Callable[[PyTree, PyTree], PyTree]
"""(weights of a layer after an update, its statistics) -> weights."""


class DeviceUpdate:
    """Any optax transformation, a bundle at a time.

    As in `sr.layerwise`, it sees {"layers": one layer} and the extra argument `layer`; for the rest
    (embedding, last norm, head) there may be another one. A clip by the global norm at the head of
    an `optax.chain` is that of the whole gradient (`clip_norm`). What else looks at all gradients
    together would see one bundle at a time, and is refused where states are made.

    Args:
        adjust: what moves weights that have no gradient (balancing of experts).
    """

    fields = ("weights", "state")
    on_host = False

    def __init__(
        self,
        optimizer: optax.GradientTransformation,
        rest: optax.GradientTransformation | None = None,
        adjust: Adjust | None = None,
    ):
        apart = without_clips(optimizer, rest, "DeviceUpdate")
        self.clip_norm, self._layers, self._rest = apart
        self._adjust = adjust
        self._alone: list[Piece] | None = None  # of the rest; none if it is updated as a whole
        self.of_layer = jax.jit(self._layer, donate_argnums=(0, 1))
        self.of_rest = jax.jit(self._others, donate_argnums=(0, 1))

    def init(self, weights: PyTree, layer: bool) -> PyTree:
        """The state of a bundle, from its float32 weights.

        Raises:
            InputError: the optimizer looks at all gradients together.
        """
        return init_bundle(self._layers, self._rest, weights, layer)

    def apply(self, conveyor: Conveyor[HostStore], passing: Passing, gradient: Gradient) -> None:
        bundle, arrays = passing.bundle, passing.arrays
        if bundle < conveyor.store.bundles - 1:
            index = np.int32(bundle)
            weights, state = self.of_layer(
                arrays["weights"], arrays["state"], *gradient[:3], gradient.stats, index
            )
        else:
            weights, state = self.of_rest(arrays["weights"], arrays["state"], *gradient[:3])
        new = {"weights": weights, "state": state}
        store = conveyor.store
        if store.resident(bundle):
            store.replace(bundle, new)
            return
        returned: Future[None] = Future()
        store.promise(bundle, returned)

        def arrived(fetched: Future[PyTree]) -> None:
            store.replace(bundle, fetched.result())
            returned.set_result(None)

        fetched = conveyor.link.fetch(new)
        passing.until(fetched)
        fetched.add_done_callback(or_fail(arrived, returned))

    def apply_all(self, conveyor: Conveyor[HostStore], held: Held, gradient: Gradient) -> None:
        rest = conveyor.store.bundles - 1
        if rest in held and not conveyor.store.resident(rest):
            alone = self._pieces(conveyor.store, rest)
            if alone:
                values, _ = held.pop(rest).result()
                self._one_by_one(conveyor, rest, alone, gradient._replace(values=values))
        for passing in conveyor.walk([Stop(bundle, self.fields) for bundle in sorted(held)]):
            values, stats = conveyor.link.send(held.pop(passing.bundle).result()).result()
            self.apply(conveyor, passing, gradient._replace(values=values, stats=stats))

    def _pieces(self, store: HostStore, rest: int) -> list[Piece]:
        if self._alone is None:
            self._alone = pieces(self._rest, *(store.tree(rest, field) for field in self.fields))
        return self._alone

    def _one_by_one(
        self, conveyor: Conveyor[HostStore], rest: int, alone: list[Piece], gradient: Gradient
    ) -> None:
        """The update of what is on the host, piece by piece. Counters of the state, which all
        pieces read, are written with the last of them."""
        store, link = conveyor.store, conveyor.link
        conveyor.ledger.writing(rest)
        last = {number: piece for piece in alone for number in piece.state}
        stored = {f: jax.tree.leaves(x) for f, x in store.arrays(rest, self.fields).items()}

        def put(field: str, numbers: list[int], new: PyTree, piece: Piece) -> None:
            for number, leaf in zip(numbers, jax.tree.leaves(new), strict=True):
                if field == "weights" or last[number] is piece:
                    store.write(rest, field, number, writable(link.fetch(leaf).result()))

        for piece in alone:
            entry = jax.tree.structure({piece.name: store.tree(rest, "weights")[piece.name]})
            weights = entry.unflatten([stored["weights"][n] for n in piece.weights])
            state = piece.structure.unflatten([stored["state"][n] for n in piece.state])
            values = {piece.name: gradient.values[piece.name]}
            sent = link.send((weights, state, values)).result()
            new_weights, new_state = self.of_rest(*sent, *gradient[1:3])
            put("weights", piece.weights, new_weights, piece)
            put("state", piece.state, new_state, piece)

    def _layer(
        self,
        weights: PyTree,
        state: PyTree,
        grads: PyTree,
        factor: Array,
        good: Array,
        stats: PyTree,
        layer: Array,
    ) -> tuple[PyTree, PyTree]:
        as_layers = lambda tree: {"layers": tree}
        new, state = apply_update(
            self._layers, as_layers(weights), state, as_layers(grads), factor, good, layer=layer
        )
        new = new["layers"]
        return (new if self._adjust is None else self._adjust(new, stats)), state

    def _others(
        self, weights: PyTree, state: PyTree, grads: PyTree, factor: Array, good: Array
    ) -> tuple[PyTree, PyTree]:
        return apply_update(self._rest, weights, state, grads, factor, good)


def init_bundle(
    layers: optax.GradientTransformation,
    rest: optax.GradientTransformation,
    weights: PyTree,
    layer: bool,
) -> PyTree:
    """The state of a bundle, from its float32 weights.

    Raises:
        InputError: the optimizer looks at all gradients together, or keeps a random key.
    """
    optimizer, weights = (layers, {"layers": weights}) if layer else (rest, weights)
    extra = {"layer": jnp.int32(0)} if layer else {}
    check_each_by_itself(
        optimizer, weights, "leave it out, and clip by clip=Clip(...) of Streamed", **extra
    )
    state = optimizer.init(weights)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
            raise InputError(
                f"the optimizer keeps a random key in its state ({path_of(path)}), and what streams"
                " is plain numbers; leave out what draws, such as optax.add_noise"
            )
    return state


def apply_update(
    optimizer: optax.GradientTransformationExtraArgs,
    weights: PyTree,
    state: PyTree,
    grads: PyTree,
    factor: Array,
    good: Array,
    **extra: Array,
) -> tuple[PyTree, PyTree]:
    """(weights, state) after a step with factor * grads; as they were unless `good`."""
    grads = jax.tree.map(lambda g: g * factor.astype(g.dtype), grads)
    with jax.numpy_dtype_promotion("standard"):  # optimizers need not be strict
        updates, new_state = optimizer.update(grads, state, weights, **extra)
        new = optax.apply_updates(weights, updates)
    keep = lambda a, b: jnp.where(good, a, b)
    return jax.tree.map(keep, new, weights), jax.tree.map(keep, new_state, state)
