"""Weights for models of which only memory and time are of interest."""

from collections.abc import Iterator
from typing import Any

import jax
import ml_dtypes
import numpy as np

from springroll.models.decoder_config import DecoderConfig, shapes


def repeated(shape: DecoderConfig) -> Iterator[tuple[str, tuple[int, ...], Any]]:
    """Random weights, bundle by bundle; all layers have those of the first, which saves minutes."""
    rng = np.random.default_rng(0)
    layer: dict[str, Any] = {}
    is_shape = lambda node: isinstance(node, tuple)
    for path, size in jax.tree_util.tree_leaves_with_path(shapes(shape), is_leaf=is_shape):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        layered = name.startswith("layers/")
        values = random(rng, name, size[1:] if layered else size, shape.init_std)
        if layered:
            layer[name] = values
        else:
            yield name, (), values
    for i in range(shape.layers):
        yield from ((name, (i,), values) for name, values in layer.items())


def random(rng: np.random.Generator, name: str, size: tuple[int, ...], std: float) -> np.ndarray:
    """bfloat16, as a model begins."""
    if "norm" in name:
        return np.ones(size, ml_dtypes.bfloat16)
    return (rng.standard_normal(size, np.float32) * np.float32(std)).astype(ml_dtypes.bfloat16)
