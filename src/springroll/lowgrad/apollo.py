"""APOLLO: the full gradient, scaled as Adam would scale it in a random subspace (arXiv 2412.05270).

Adam sees R = PᵀG (r, n) only. From how much it stretches each column of R follows how much to
stretch the column of G; with one number for the whole matrix (APOLLO-Mini) r = 1 is enough. P is
Gaussian and drawn again from its seed whenever it is needed: it takes no memory.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, Unpack

import jax.numpy as jnp
import optax
from jax import Array

from springroll.errors import InputError
from springroll.lowgrad.hf_adam import adam_direction, hf_step
from springroll.lowgrad.limiter import GAMMA, limit_growth
from springroll.lowgrad.low_rank import Rule, Step, low_rank
from springroll.lowgrad.matrix_view import one_of
from springroll.lowgrad.projection import Projection, ProjectionOptions

Compat = Literal["apollo-torch"]
Per = Literal["channel", "tensor"]

OURS: ProjectionOptions = {"side": "std", "refresh": "random", "moments": "keep", "stagger": False}
RELEASED: ProjectionOptions = {"rows": "out"}


def apollo(
    learning_rate: optax.ScalarOrSchedule,
    rank: int,
    *,
    scale: float = 1.0,
    per: Per = "channel",
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    gamma: float | None = GAMMA,
    direction: optax.GradientTransformation | None = None,
    compat: Compat | None = None,
    **options: Unpack[ProjectionOptions],
) -> optax.GradientTransformationExtraArgs:
    """W <- W - lr k_t sqrt(scale) L(G s), with s_j = ‖N_j‖ / ‖R_j‖ for each column j.

    N = m / (sqrt(v) + eps) is Adam's direction for R, k_t its bias correction, L the norm-growth
    limiter. To multiply by sqrt(scale) before L, `scale_front` of the released code, gives the same
    updates, because L only knows ratios.
    Parameters that are not selected get plain Adam (`hf_adamw`).

        tx = sr.apollo(1e-2, rank=256, plan=sr.discover(fn, params, x))

    Args:
        learning_rate: number or schedule.
        rank: r, at most min(m, n) of every selected matrix.
        scale: alpha: 1 for APOLLO, 128 for APOLLO-Mini.
        per: one s for each "channel" (column of R) or for the "tensor", that is, the matrix.
        b1, b2, eps: Adam's; eps is added before the bias correction.
        weight_decay: decoupled, of the weight after the step.
        gamma: largest growth of the norm of G s from step to step; None: no limit.
        direction: what makes N of R, `adam_direction(b1, b2, eps)` by default; for example
            `quantize_state(adam_direction())`.
        compat: "apollo-torch" (1.0.3): parameters are (out, in). The rest is as released.
        options: see `ProjectionOptions`. By default `side` "std", a new random P every 200 steps.
            With `refresh` "power" or "svd" P is stored.

    State: two moments of (r, n) and one float per matrix.

    Raises:
        InputError: as `galore`; and side "full", which leaves no channels.
    """
    one_of(per, Per, "per")
    if compat is not None:
        one_of(compat, Compat, "compat")
    projection = Projection.of(rank, OURS, RELEASED if compat else {}, options)
    projection = dataclasses.replace(projection, stored=projection.refresh != "random")
    if projection.side == "full":
        raise InputError("side is 'full'; apollo scales channels, project one side of the matrix")

    def scaled(step: Step) -> tuple[Array, Array | None]:
        update, norm = step.gradient.astype(jnp.float32) * stretch(step, per), step.norm
        if norm is not None and gamma is not None:
            update, norm = limit_growth(update, norm, gamma)
        return math.sqrt(scale) * update, norm

    return optax.chain(
        low_rank(
            direction or adam_direction(b1, b2, eps), projection, Rule(scaled, gamma is not None)
        ),
        hf_step(learning_rate, b1, b2, weight_decay=weight_decay),
    )


def apollo_mini(
    learning_rate: optax.ScalarOrSchedule,
    rank: int = 1,
    *,
    scale: float = 128.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    gamma: float | None = GAMMA,
    direction: optax.GradientTransformation | None = None,
    compat: Compat | None = None,
    **options: Unpack[ProjectionOptions],
) -> optax.GradientTransformationExtraArgs:
    """APOLLO-Mini: `apollo` with one scale per matrix, for which rank 1 is enough."""
    return apollo(
        learning_rate,
        rank,
        scale=scale,
        per="tensor",
        b1=b1,
        b2=b2,
        eps=eps,
        weight_decay=weight_decay,
        gamma=gamma,
        direction=direction,
        compat=compat,
        **options,
    )


def stretch(step: Step, per: Per) -> Array:
    """‖N‖ / ‖R‖ along the rank axis or of the whole matrix, of a shape that multiplies G.

    Zero where R is: a channel that got no gradient has nothing to scale.
    """
    rank_axis = -2 if step.projector.left is not None else -1
    axes = rank_axis if per == "channel" else (-2, -1)
    length = lambda x: jnp.linalg.norm(x.astype(jnp.float32), axis=axes, keepdims=True)
    before, after = length(step.low_gradient), length(step.low_update)
    return jnp.where(before > 0, after / jnp.where(before > 0, before, 1.0), 0.0)
