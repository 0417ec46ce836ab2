"""A product with a weight whose gradient is cheap to lay out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from springroll.models import attention
from springroll.quant.int8_weights import Int8


def linear(x: Array, w: Array | Int8) -> Array:
    """x (..., in) times a weight (out, in): (..., out); `Int8` weights are not trained by it."""
    return attention.linear(x, w) if isinstance(w, Int8) else _linear(x, w)


@jax.custom_vjp
def _linear(x: Array, w: Array) -> Array:
    """The product of floats.

    The weight's gradient is asked for as (x^T g)^T. Of g^T x the CPU compiler would transpose g,
    which a long chain of elementwise steps makes, number by number: a quarter of a training step.
    """
    return jnp.einsum("...i,oi->...o", x, w)


def _forward(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return _linear(x, w), (x, w)


def _backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, w = kept
    flat = lambda y: y.reshape(-1, y.shape[-1])
    of_w = jnp.einsum("ti,to->io", flat(x), flat(gradient)).T
    return jnp.einsum("...o,oi->...i", gradient, w), of_w


_linear.defvjp(_forward, _backward)
