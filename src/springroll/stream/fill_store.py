"""A store from weights that come one tensor at a time and are written a slice at a time, so that
memory holds the store and one slice.

States are made before there is a store, on the processor: what they begin with is mostly one number
that is repeated, and is kept as that.
"""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from springroll.errors import InputError
from springroll.memory import trim_heap
from springroll.models.drawn import Drawn
from springroll.quant.split_master import split_on_host
from springroll.safetensors_map import forget
from springroll.stream.bundles import Bundles, Index, Part, kinds, overlap, whole_layers
from springroll.stream.homes import Fields, on_processor, repeated
from springroll.stream.store import HostStore
from springroll.trees import PyTree, named_leaves

Tensors: TypeAlias = Iterator[
    tuple[str, tuple[int, ...], np.ndarray | Drawn]
]  # (path, index into its stacks, values)
SLICE = 1 << 20  # numbers that are written at a time, 4 MiB in float32


class InitState(Protocol):
    """What of an `Update` makes states."""

    def init(self, weights: PyTree, layer: bool) -> PyTree:
        """The state of a bundle, from its float32 weights."""
        ...


def blank(store: HostStore, update: InitState, bundles: Bundles, narrow: bool) -> None:
    """Append every bundle of a model with weights that are all zero.

    Args:
        update: whose `init` makes the state of a bundle.
        bundles: float32 ones.
        narrow: keep bfloat16 halves.
    """
    fields: dict[int, Fields] = {}
    for alike in kinds(bundles):
        tree = jax.tree.map(lambda part: part.struct, bundles[alike[0]])
        layer = alike[0] < len(bundles) - 1
        with on_processor():
            zeros: Fields = jax.tree.map(repeated, _fresh(update, tree, layer, narrow))
        fields |= dict.fromkeys(alike, zeros)
    trim_heap()
    for number in range(len(bundles)):
        store.append(fields[number])


def fill(
    store: HostStore, tensors: Tensors, shapes: PyTree, bundles: Bundles | None = None
) -> None:
    """Write tensors where they belong: with a split master, both halves.

    Args:
        shapes: of the parameters.
        bundles: of the store; by default whole layers.

    Raises:
        InputError: a tensor that the model does not have, of another shape, or one is missing.
    """
    places = _places(store, whole_layers(shapes) if bundles is None else bundles)
    whole = {path: parts[0].part.parameter_shape for path, parts in places.items()}
    missing = {path: int(np.prod(shape)) for path, shape in whole.items()}
    for path, index, values in tensors:
        if path not in places:
            raise InputError(f"{path} is no parameter of the model")
        shape = whole[path][len(index) :]
        values = values if isinstance(values, Drawn) else np.asarray(values)
        if values.shape != shape:
            raise InputError(f"{path} has the shape {list(values.shape)}; expected {list(shape)}")
        missing[path] -= values.size
        for place in places[path]:
            common = overlap(place.part, index)
            if common is not None:
                _write(store, place, common[1], values[common[0]])
    absent = [path for path, left in missing.items() if left]
    if absent:
        raise InputError(f"{len(absent)} parameters have no values, {absent[0]} among them")


def stacked_leaves(leaves: Iterable[tuple[str, PyTree]]) -> Tensors:
    """Whole parameters as tensors for `fill`.

    Args:
        leaves: (path, array), such as ("layers/mlp/up_proj", an array (layers, ...)). They may be
            made on the way: each is dropped before the next is asked for. Of those that are `Drawn`
            only slices are made.

    Returns:
        An iterator of (path, (), array).
    """
    for path, values in leaves:
        yield path, (), values if isinstance(values, Drawn) else np.asarray(values)


def bundled_leaves(bundles: Iterable[PyTree]) -> Tensors:
    """Layers as tensors for `fill`.

    Args:
        bundles: The parameters of one layer each, in order, without a layer axis, and last those
            of no layer. They may be read on the way, such as by `models.hf.load.read_bundles`.

    Returns:
        An iterator of (path, (layer,) or (), array).
    """
    waiting, at = None, -1
    for bundle in bundles:
        if waiting is not None:
            yield from _named("layers/", (at,), waiting)
        waiting, at = bundle, at + 1
    yield from _named("", (), waiting)


def _named(prefix: str, index: tuple[int, ...], tree: PyTree) -> Tensors:
    for path, leaf in named_leaves(tree).items():
        yield prefix + path, index, leaf


def _fresh(update: InitState, tree: PyTree, layer: bool, narrow: bool) -> PyTree:
    """A bundle of zeros. Not compiled as a whole: XLA would spend minutes on folding it."""
    zeros = lambda dtype: jax.tree.map(lambda a: jnp.zeros(a.shape, dtype), tree)
    state = update.init(zeros(jnp.float32), layer)
    return {"weights": zeros(jnp.bfloat16 if narrow else jnp.float32), "state": state}


class _Place(NamedTuple):
    """Where a part is: the numbers of its leaf among the weights, and of its low half."""

    part: Part
    bundle: int
    weights: int
    low: int | None


def _places(store: HostStore, bundles: Bundles) -> dict[str, list[_Place]]:
    """By path of the parameter."""
    places: dict[str, list[_Place]] = {}
    for bundle, tree in enumerate(bundles):
        lows = _lows(store.tree(bundle, "state"))
        for number, part in enumerate(jax.tree.leaves(tree)):
            place = _Place(part, bundle, number, lows[number] if lows else None)
            places.setdefault(part.path, []).append(place)
    return places


def _lows(state: PyTree) -> list[int]:
    """Numbers of the leaves that are low halves of a split master, in the order of the weights."""
    return [
        number
        for number, (path, _) in enumerate(jax.tree_util.tree_leaves_with_path(state))
        if any(isinstance(k, jax.tree_util.GetAttrKey) and k.name == "low" for k in path)
    ]


def _write(store: HostStore, place: _Place, inside: Index, values: np.ndarray | Drawn) -> None:
    """Values of a part, or with `inside` of some of it, to where the part is, slice by slice."""
    fixed = tuple(at for at in inside if isinstance(at, int))
    whole = store.resident(place.bundle) and not fixed  # what is on the device is put there once
    narrow = store.struct(place.bundle, "weights", place.weights).dtype == jnp.bfloat16
    for rows in [()] if whole else _slices(values.shape):
        given = new = np.asarray(values[rows])
        at = (*fixed, *rows)
        if not narrow or new.dtype == jnp.bfloat16:
            new = new.astype(jnp.bfloat16 if narrow else np.float32, copy=False)
            store.write(place.bundle, "weights", place.weights, new, at)
        else:
            high, rest = split_on_host(new)
            store.write(place.bundle, "weights", place.weights, high, at)
            if place.low is not None:
                store.write(place.bundle, "state", place.low, rest, at)
        forget(given)


def _slices(shape: tuple[int, ...]) -> list[Index]:
    """Rows of an array that are written together."""
    if not shape:
        return [()]
    rows = max(1, SLICE // max(1, math.prod(shape[1:])))
    return [(slice(begin, min(begin + rows, shape[0])),) for begin in range(0, shape[0], rows)]
