"""The state of an evolved model in two places: layers in a store, the rest on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array

from springroll.evolve.strategy import State
from springroll.stream.link import Link
from springroll.stream.parted_state import ByPath, Parted, named, unnamed
from springroll.stream.store import HostStore


def started(parted: Parted, link: Link, key: Array, params: Any) -> tuple[HostStore, State]:
    """(store of the layers, state of the rest) of generation 0, made one layer at a time."""
    stack, init = parted.stack, jax.jit(parted.for_layer.init)
    store = HostStore(link)
    for index in range(parted.layers):
        weights = jax.tree.map(lambda x, i=index: np.asarray(x[i]), params[stack])
        fields: ByPath = {"weights": weights, "state": {}}
        if parted.stacked:
            layer = init(key, {stack: jax.tree.map(lambda x: x[None], weights)})
            fields |= {"state": parted.fields(layer)["state"]}
        store.append(fields)
    return store, rest_started(parted, link, key, params)


def rest_started(parted: Parted, link: Link, key: Array, params: Any) -> State:
    """The state of the rest at generation 0, on the device."""
    others = {name: x for name, x in params.items() if name != parted.stack}
    return jax.jit(parted.for_rest.init)(key, jax.device_put(others, link.on_device))


def loaded(parted: Parted, link: Link, state: State) -> tuple[HostStore, State]:
    """The same out of a state of the whole model."""
    arrays = named(state)
    store = HostStore(link)
    for index in range(parted.layers):
        store.append(parted.layer_slice(arrays, index))
    return store, jax.device_put(unnamed(parted.other, arrays), link.on_device)


class LazyArray:
    """An array of a state that is read when NumPy asks for it, as a checkpoint does.

    As with a `jax.Array`, its value may still be to come: reading one may make layers pass.
    """

    def __init__(self, like: Any, read: Callable[[], np.ndarray]):
        self.shape, self.dtype = like.shape, like.dtype
        self._read = read

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._read(), dtype)
