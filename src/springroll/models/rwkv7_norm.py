"""Normalisations of RWKV-7: of a token, and of each head's output. float32 inside."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=3)
def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis; type of x outside."""
    unit = _standard(x.astype(jnp.float32), eps).astype(x.dtype)
    row = (1,) * (x.ndim - 1) + weight.shape
    return unit * weight.reshape(row) + bias.reshape(row)


def head_norm(y_BTHN: Array, weight: Array, bias: Array, eps: float) -> Array:
    """Each head's output normalised by itself, then weight and bias (H N,): (B, T, H N) float32."""
    unit = _standard(y_BTHN, eps).reshape(*y_BTHN.shape[:2], -1)
    wide = lambda vector: vector.astype(jnp.float32)[None, None]
    return unit * wide(weight) + wide(bias)


def _standard(x: Array, eps: float) -> Array:
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + np.float32(eps))
