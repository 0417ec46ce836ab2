"""What stands between the matrices of a feed-forward net. For the gradient only inputs are kept."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=2)
def gated(gate: Array, up: Array, limit: float) -> Array:
    """SwiGLU, silu(gate) * up; with a `limit` above 0 that of gpt-oss.

    That is (up + 1) * gate * sigmoid(1.702 gate), gate clipped to at most limit, up to +-limit.
    """
    if not limit:
        return jax.nn.silu(gate) * up
    most = np.asarray(limit, gate.dtype)
    gate, up = jnp.minimum(gate, most), jnp.clip(up, -most, most) + np.ones((), up.dtype)
    return up * gate * jax.nn.sigmoid(gate * np.asarray(1.702, gate.dtype))
