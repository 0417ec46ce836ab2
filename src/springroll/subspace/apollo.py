"""APOLLO: the full gradient, scaled as Adam would scale it in a random subspace (arXiv 2412.05270).

Adam sees R = PᵀG (r, n) only. From how much it stretches each column of R follows how much to
stretch the column of G; with one number for the whole matrix (APOLLO-Mini) r = 1 is enough. P is
Gaussian and drawn again from its seed whenever it is needed: it takes no memory.
"""

import dataclasses
import math
from typing import Literal, Unpack

import jax.numpy as jnp
import optax
from jax import Array

from springroll.deprecation import renamed_keywords
from springroll.quant.transformation import number
from springroll.ranges import check_scalar
from springroll.subspace.channels import GAMMA, Per, energy, length, limit_growth, stretch
from springroll.subspace.hf_adam import adam_direction, hf_step
from springroll.subspace.low_rank import Rule, Step, low_rank
from springroll.subspace.matrix_view import one_of
from springroll.subspace.per_path import PerPath
from springroll.subspace.projection import Projection, ProjectionOptions

Compat = Literal["apollo-torch"]

OURS: ProjectionOptions = {"side": "std", "refresh": "random", "moments": "keep", "stagger": False}
RELEASED: ProjectionOptions = {"rows": "out"}


@renamed_keywords(update_gap="refresh_interval", plan="roles")
def apollo(
    learning_rate: optax.ScalarOrSchedule,
    rank: PerPath,
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
    """APOLLO: the gradient itself, scaled per channel as Adam would in a random low-rank subspace.

    W <- W - lr k_t sqrt(scale) L(G s), with s_j = ‖N_j‖ / ‖R_j‖ for each column j.

    N = m / (sqrt(v) + eps) is Adam's direction for R, k_t its bias correction, L the norm-growth
    limiter. Whether sqrt(scale) is inside of L, `scale_front` of the released code, makes no
    difference, because L only knows ratios.
    Parameters that are not selected get plain Adam (`hf_adamw`).

        tx = sr.apollo(1e-2, rank=256, roles=sr.discover(fn, params, x))

    Args:
        learning_rate: number or schedule.
        rank: r, as of `galore`.
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

    Returns:
        An optax transformation; with weight decay its update needs the parameters.

    State: two moments of (r, n) and one float per matrix.

    Raises:
        InputError: as `galore`; and side "full", which leaves no channels.

    Source: arXiv 2412.05270.
    """
    one_of(per, Per, "per")
    if compat is not None:
        one_of(compat, Compat, "compat")
    projection = Projection.of(rank, OURS, RELEASED if compat else {}, options)
    projection = dataclasses.replace(projection, stored=projection.refresh != "random")
    projection.check_side("apollo")
    check_scalar("scale", scale)
    if gamma is not None:
        check_scalar("gamma", gamma)
    root = math.sqrt(scale) if isinstance(scale, int | float) else jnp.sqrt(number(scale))

    def scaled(step: Step) -> tuple[Array, Array | None]:
        factors, norm = root * stretch(step, per), step.norm
        if norm is not None and gamma is not None:
            # The norm of G s without G s, which is only formed where it is added to the weight.
            size = length(jnp.square(factors) * energy(step.gradient, step))
            shorter, norm = limit_growth(size, norm, number(gamma))
            factors = factors * shorter[..., None, None]
        return factors * step.gradient.astype(jnp.float32), norm

    return optax.chain(
        low_rank(
            adam_direction(b1, b2, eps) if direction is None else direction,
            projection,
            Rule(scaled, gamma is not None),
            "apollo's direction",
        ),
        hf_step(learning_rate, b1, b2, weight_decay=weight_decay),
    )


@renamed_keywords(update_gap="refresh_interval", plan="roles")
def apollo_mini(
    learning_rate: optax.ScalarOrSchedule,
    rank: PerPath = 1,
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
    """APOLLO-Mini: `apollo` with one scale per matrix, for which rank 1 is enough.

        tx = sr.apollo_mini(1e-2, roles=sr.discover(fn, params, x))

    Args:
        learning_rate: a number, or a schedule of the number of updates so far.
        rank: of the subspaces in which Adam sees the gradients; as of `apollo`.
        scale: alpha; the update is multiplied by its square root.
        b1, b2, eps, weight_decay, gamma, direction, compat, options: as of `apollo`.

    Returns:
        An optax transformation; with weight decay its update needs the parameters.

    State: two vectors and one float per matrix.

    Raises:
        InputError: as `apollo`.

    Source: arXiv 2412.05270.
    """
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
