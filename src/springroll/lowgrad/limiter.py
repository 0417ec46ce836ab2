"""The norm-growth limiter of Fira (arXiv 2410.01623, section 4.2): no sudden long steps."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

GAMMA = 1.01


def limit_growth(update: Array, before: Array, gamma: float = GAMMA) -> tuple[Array, Array]:
    """Shorten matrices whose norm grew by more than `gamma`: (update, norms for the next step).

    x <- x min(1, gamma before / ‖x‖). `update` is (*stack, m, n), norms are (*stack,) float32, each
    matrix by itself. A norm `before` of zero stands for "none yet" and does not limit. A matrix
    whose update is zero (an expert without tokens) keeps the norm it had; in the released code it
    would need thousands of steps to grow again from 1e-8.
    """
    norm = jnp.linalg.norm(update.astype(jnp.float32), axis=(-2, -1))
    alive = norm > 0
    limit = jnp.where(before > 0, gamma * before, norm)
    shorter = jnp.where(alive, jnp.minimum(1.0, limit / jnp.where(alive, norm, 1.0)), 1.0)
    return update * shorter[..., None, None], jnp.where(alive, shorter * norm, before)
