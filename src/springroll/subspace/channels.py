"""What APOLLO and Fira scale by: how much Adam stretches the channels of a low-rank gradient.

A channel is a column of R along the rank axis, and the column of G it comes from. All results are
(*stack, 1, n), (*stack, m, 1) or, for whole matrices, (*stack, 1, 1), and multiply G as they are.
"""

from typing import Literal

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from springroll.subspace.low_rank import Step

Per = Literal["channel", "tensor"]
GAMMA = 1.01  # the largest growth of a norm from step to step


def energy(matrix: Array, step: Step, per: Per = "channel") -> Array:
    """Sums of squares of the channels of G, R or N, float32."""
    rank_axis = -2 if step.projector.left is not None else -1
    axes = rank_axis if per == "channel" else (-2, -1)
    return jnp.sum(jnp.square(matrix.astype(jnp.float32)), axis=axes, keepdims=True)


def stretch(step: Step, per: Per = "channel") -> Array:
    """s = ‖N‖ / ‖R‖ of each channel, or of the matrix; zero where there is no gradient."""
    before = energy(step.low_gradient, step, per)
    after = energy(step.low_update, step, per)
    alive = before > 0
    return jnp.where(alive, jnp.sqrt(after / jnp.where(alive, before, 1.0)), 0.0)


def length(squares: Array) -> Array:
    """(*stack,) norms of matrices from the energies of their channels, rounding kept above zero."""
    return jnp.sqrt(jnp.maximum(jnp.sum(squares, axis=(-2, -1)), 0.0))


def limit_growth(norm: Array, before: Array, gamma: ArrayLike = GAMMA) -> tuple[Array, Array]:
    """The norm-growth limiter of Fira (arXiv 2410.01623, section 4.2): no sudden long steps.

    What to multiply updates by so that no norm grows by more than `gamma`, and their norms then.

    min(1, gamma before / norm), each matrix by itself; all arrays are (*stack,) float32. A norm
    `before` of zero stands for "none yet" and does not limit. A matrix whose update is zero (an
    expert without tokens) keeps the norm it had; in the released code it would need thousands of
    steps to grow again from 1e-8.
    """
    alive = norm > 0
    limit = jnp.where(before > 0, gamma * before, norm)
    factor = jnp.where(alive, jnp.minimum(1.0, limit / jnp.where(alive, norm, 1.0)), 1.0)
    return factor, jnp.where(alive, factor * norm, before)
