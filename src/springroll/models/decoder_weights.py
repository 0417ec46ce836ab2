"""Weights that a decoder begins with: every leaf has a key of its own."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from springroll.models.decoder_config import DecoderConfig, shape_leaves, shapes, structure
from springroll.models.drawn import Drawn, drawn_apart
from springroll.trees import Params


def init(config: DecoderConfig, key: Array, dtype: DTypeLike = jnp.float32) -> Params:
    """Fresh parameters; every leaf has a key of its own."""
    return structure(shapes(config)).unflatten([values for _, values in leaves(config, key, dtype)])


def leaves(
    config: DecoderConfig, key: Array, dtype: DTypeLike = jnp.float32
) -> Iterator[tuple[str, Array]]:
    """The same parameters by path, one leaf after the other, in the order of the tree."""
    for path, k, shape in _keyed(config, key):
        yield path, _leaf(config, path.rpartition("/")[2], shape, k, dtype)


def drawn_leaves(config: DecoderConfig, key: Array) -> Iterator[tuple[str, Array | Drawn]]:
    """The same in float32, with the same bits; random ones are drawn where they are asked for."""
    apart = drawn_apart(key)
    for path, k, shape in _keyed(config, key):
        name = path.rpartition("/")[2]
        if apart and _is_drawn(name):
            yield path, Drawn(k, shape, config.init_std)
        else:
            yield path, _leaf(config, name, shape, k, jnp.float32)


def _keyed(config: DecoderConfig, key: Array) -> Iterator[tuple[str, Array, tuple[int, ...]]]:
    by_path = shape_leaves(shapes(config))
    keys = jax.random.split(key, len(by_path))
    return ((path, k, shape) for (path, shape), k in zip(by_path.items(), keys, strict=True))


def _is_drawn(name: str) -> bool:
    """Whether a leaf of that name begins with random numbers."""
    return "norm" not in name and not name.endswith(("bias", "sinks"))


def _leaf(
    config: DecoderConfig, name: str, shape: tuple[int, ...], key: Array, dtype: DTypeLike
) -> Array:
    if "norm" in name:
        return jnp.zeros(shape, dtype) if config.norm_plus_one else jnp.ones(shape, dtype)
    if not _is_drawn(name):
        return jnp.zeros(shape, dtype)
    return jax.random.normal(key, shape, dtype) * np.asarray(config.init_std, dtype)
