"""One block of attention and a head as users of flax NNX, Equinox and Haiku write them.

What of them is a matrix, and how it is laid out, differs: NNX has a kernel (inputs, heads, size),
Equinox a weight (outputs, inputs), Haiku one (inputs, outputs).
"""

import zlib
from collections.abc import Callable
from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from springroll.trees import PyTree, map_named

WIDE, HEADS, SIZE, OUT = 12, 2, 8, 10
BATCH, LENGTH = 6, 5


def _spread(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of a step, the same on both sides of a comparison."""
    x = _spread((BATCH, LENGTH, WIDE), 100 + step) * 0.7 ** np.arange(WIDE, dtype=np.float32)
    return x, 0.1 * _spread((BATCH, LENGTH, OUT), 500 + step)


def started(params: PyTree) -> PyTree:
    """Weights from a formula, so that no library's draws matter."""
    fill = lambda path, x: jnp.asarray(0.3 * _spread(x.shape, zlib.crc32(path.encode())))
    return map_named(fill, params)


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        options: Any = {"in_features": WIDE, "qkv_features": HEADS * SIZE, "decode": False}
        self.attention = nnx.MultiHeadAttention(num_heads=HEADS, rngs=rngs, **options)
        self.head = nnx.Linear(WIDE, OUT, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.head(jnp.tanh(x + self.attention(x)))


def nnx_model() -> tuple[PyTree, Callable[..., Any]]:
    """(parameters, (parameters, x) -> y)"""
    graph, params, rest = nnx.split(Block(nnx.Rngs(0)), nnx.Param, ...)
    return params, lambda params, x: nnx.merge(graph, params, rest)(x)


def equinox_model() -> tuple[PyTree, Callable[..., Any]]:
    """(parameters, (parameters, x) -> y)"""
    keys = jax.random.split(jax.random.key(0))
    attention = eqx.nn.MultiheadAttention(HEADS, WIDE, qk_size=SIZE, vo_size=SIZE, key=keys[0])
    model = {"attention": attention, "head": eqx.nn.Linear(WIDE, OUT, key=keys[1])}
    params, rest = eqx.partition(model, eqx.is_inexact_array)

    def run(params: PyTree, x: Any) -> Any:
        model: Any = eqx.combine(params, rest)
        hidden = jax.vmap(lambda x: jnp.tanh(x + model["attention"](x, x, x)))(x)
        return jax.vmap(jax.vmap(model["head"]))(hidden)

    return params, run


def haiku_model() -> tuple[PyTree, Callable[..., Any]]:
    """(parameters, (parameters, x) -> y)"""

    def forward(x: Any) -> Any:
        init = hk.initializers.VarianceScaling(1.0)
        attention = hk.MultiHeadAttention(HEADS, SIZE, model_size=WIDE, w_init=init)
        return hk.Linear(OUT)(jnp.tanh(x + attention(x, x, x)))

    model = hk.transform(forward)
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch(0)[0])
    return shapes, lambda params, x: model.apply(params, None, x)


MODELS = {"nnx": nnx_model, "equinox": equinox_model, "haiku": haiku_model}


def problem(name: str) -> tuple[PyTree, Callable[..., Any]]:
    """(first parameters, loss(params, x, y)) of a model by the name of its library."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        params, run = MODELS[name]()

    def loss(params: PyTree, x: Any, y: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return jnp.mean(jnp.square(run(params, x) - y))

    return started(params), loss
