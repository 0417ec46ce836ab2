"""A store from weights that come one tensor at a time, so that memory holds the store and one."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from springroll.errors import InputError
from springroll.models.safetensors_map import forget
from springroll.quant.split_master import high_half, split
from springroll.stream.store import HostStore

Tensors = Iterator[tuple[str, tuple[int, ...], Any]]  # (path, index into its stacks, values)


def blank(store: HostStore, update: Any, shapes: Any, narrow: bool) -> None:
    """Append every bundle of a model with weights that are all zero.

    Args:
        update: whose `init` makes the state of a bundle.
        shapes: float32 parameters as `jax.ShapeDtypeStruct`s, blocks stacked in "layers".
        narrow: keep bfloat16 halves.
    """
    layers, rest = shapes["layers"], {k: v for k, v in shapes.items() if k != "layers"}
    depth = jax.tree.leaves(layers)[0].shape[0]
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), layers)
    for tree, count in ((one, depth), (rest, 1)):
        made = jax.device_get(_fresh(update, tree, tree is one, narrow))
        for _ in range(count):
            store.append(made)


def fill(store: HostStore, tensors: Tensors, shapes: Any) -> None:
    """Write tensors where they belong: with a split master, both halves.

    Raises:
        InputError: a tensor that the model does not have, of another shape, or one is missing.
    """
    places = _places(store, shapes)
    missing = {path: int(np.prod(shape)) for path, (shape, *_) in places.items()}
    for path, index, values in tensors:
        if path not in places:
            raise InputError(f"{path} is no parameter of the model")
        shape, layered, weights, low = places[path]
        values = np.asarray(values)
        if values.shape != shape[len(index) :]:
            raise InputError(
                f"{path} has the shape {list(values.shape)}; expected {list(shape[len(index) :])}"
            )
        missing[path] -= values.size
        stacks = values[None] if layered and index else values if layered else [values]
        first = index[0] if index and layered else 0
        for offset, part in enumerate(stacks):
            bundle = first + offset if layered else store.bundles - 1
            inside = index[1:] if layered else index
            _write(store, bundle, weights, low, inside, part)
        forget(values)
    absent = [path for path, left in missing.items() if left]
    if absent:
        raise InputError(f"{len(absent)} parameters have no values, {absent[0]} among them")


def stacked_leaves(leaves: Iterable[tuple[str, Any]]) -> Tensors:
    """Whole leaves, stacked over the layers, as tensors; each is dropped before the next."""
    for path, values in leaves:
        yield path, (), np.asarray(values)


def bundled_leaves(bundles: Iterable[Any]) -> Tensors:
    """Trees of one layer each, in order, and last that of the rest, as tensors."""
    waiting, at = None, -1
    for bundle in bundles:
        if waiting is not None:
            yield from _named("layers/", (at,), waiting)
        waiting, at = bundle, at + 1
    yield from _named("", (), waiting)


def _named(prefix: str, index: tuple[int, ...], tree: Any) -> Tensors:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield prefix + jax.tree_util.keystr(path, simple=True, separator="/"), index, leaf


def _fresh(update: Any, tree: Any, layer: bool, narrow: bool) -> Any:
    def make() -> Any:
        weights = jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), tree)
        state = update.init(weights, layer)
        return {"weights": high_half(weights) if narrow else weights, "state": state}

    return jax.jit(make)()


def _places(store: HostStore, shapes: Any) -> dict[str, tuple[Any, bool, int, int | None]]:
    """Path -> (shape, whether it is a layer's, number of the leaf, number of its low half)."""
    found = {}
    for layered, bundle in ((True, 0), (False, store.bundles - 1)):
        lows = _lows(store.tree(bundle, "state"))
        tree = shapes["layers"] if layered else {k: v for k, v in shapes.items() if k != "layers"}
        for number, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(tree)):
            spelt = jax.tree_util.keystr(path, simple=True, separator="/")
            name = f"layers/{spelt}" if layered else spelt
            found[name] = (leaf.shape, layered, number, lows[number] if lows else None)
    return found


def _lows(state: Any) -> list[int]:
    """Numbers of the leaves that are low halves of a split master, in the order of the weights."""
    return [
        number
        for number, (path, _) in enumerate(jax.tree_util.tree_leaves_with_path(state))
        if any(isinstance(k, jax.tree_util.GetAttrKey) and k.name == "low" for k in path)
    ]


def _write(
    store: HostStore, bundle: int, weights: int, low: int | None, inside: Any, values: np.ndarray
) -> None:
    def put(field: str, leaf: int, new: Any) -> None:
        if inside:
            whole = store.leaf(bundle, field, leaf).copy()
            whole[inside] = new
            new = whole
        store.write(bundle, field, leaf, np.asarray(new))

    narrow = store.leaf(bundle, "weights", weights).dtype == jnp.bfloat16
    if not narrow or values.dtype == jnp.bfloat16:
        put("weights", weights, values.astype(jnp.bfloat16 if narrow else np.float32))
        return
    high, rest = jax.device_get(split(jnp.asarray(values, jnp.float32)))
    put("weights", weights, high)
    if low is not None:
        put("state", low, rest)
