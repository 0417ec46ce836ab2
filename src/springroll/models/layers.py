"""The elementary layers: norm, gate, and products with a weight.

For the gradient of norm and gate only their inputs are stored.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from springroll.quant.int8_weights import Int8
from springroll.trees import Params


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=2)
def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis; float32 inside, type of x outside."""
    wide = x.astype(jnp.float32)
    mean = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    unit = (wide * jax.lax.rsqrt(mean + np.float32(eps))).astype(x.dtype)
    return unit * weight.reshape((1,) * (x.ndim - 1) + weight.shape)


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


def linear(x: Array, w: Array | Int8) -> Array:
    """x (..., in) times a weight (out, in): (..., out).

    An `Int8` weight takes the type of x where the two meet, and its scale comes after the product.
    """
    if not isinstance(w, Int8):
        return jnp.einsum("...i,oi->...o", x, w)
    wide = x.dtype if x.dtype == jnp.float64 else jnp.float32
    # The barrier ties the conversion to its product: loops of decoding would convert the whole
    # model before they start, and hold it as floats.
    x, values = lax.optimization_barrier((x, w.values))
    y = jnp.einsum("...i,oi->...o", x, values.astype(x.dtype), preferred_element_type=wide)
    scale = w.scale.astype(wide).reshape(*(1,) * (y.ndim - 1), -1)
    return (y * scale).astype(x.dtype)


def swiglu(params: Params, x: Array) -> Array:
    """down(silu(gate(x)) * up(x))."""
    gate, up = linear(x, params["gate_proj"]), linear(x, params["up_proj"])
    return linear(gated(gate, up, 0.0), params["down_proj"])
