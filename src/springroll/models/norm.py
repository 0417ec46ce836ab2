"""Root mean square normalisation. For the gradient only its input is kept."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=2)
def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis; float32 inside, type of x outside."""
    wide = x.astype(jnp.float32)
    mean = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    unit = (wide * jax.lax.rsqrt(mean + np.float32(eps))).astype(x.dtype)
    return unit * weight.reshape((1,) * (x.ndim - 1) + weight.shape)
