"""The norm-growth limiter of Fira (arXiv 2410.01623, section 4.2): no sudden long steps."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

GAMMA = 1.01


def limit_growth(norm: Array, before: Array, gamma: float = GAMMA) -> tuple[Array, Array]:
    """What to multiply updates by so that no norm grows by more than `gamma`, and their norms then.

    min(1, gamma before / norm), each matrix by itself; all arrays are (*stack,) float32. A norm
    `before` of zero stands for "none yet" and does not limit. A matrix whose update is zero (an
    expert without tokens) keeps the norm it had; in the released code it would need thousands of
    steps to grow again from 1e-8.
    """
    alive = norm > 0
    limit = jnp.where(before > 0, gamma * before, norm)
    factor = jnp.where(alive, jnp.minimum(1.0, limit / jnp.where(alive, norm, 1.0)), 1.0)
    return factor, jnp.where(alive, factor * norm, before)
