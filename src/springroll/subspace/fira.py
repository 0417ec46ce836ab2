"""Fira: GaLore, and the rest of the gradient scaled alike (arXiv 2410.01623)."""

from typing import Literal, Unpack

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from springroll.deprecation import renamed_keywords
from springroll.quant.transformation import number
from springroll.ranges import check_scalar
from springroll.subspace.channels import GAMMA, energy, length, limit_growth, stretch
from springroll.subspace.galore import RELEASED
from springroll.subspace.hf_adam import adam_direction, hf_step
from springroll.subspace.low_rank import Rule, Step, low_rank
from springroll.subspace.matrix_view import one_of
from springroll.subspace.per_path import PerPath
from springroll.subspace.projection import Projection, ProjectionOptions

Compat = Literal["fira"]


@renamed_keywords(update_gap="refresh_interval", plan="roles")
def fira(
    learning_rate: optax.ScalarOrSchedule,
    rank: PerPath,
    *,
    scale: ArrayLike = 0.25,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    gamma: ArrayLike = GAMMA,
    direction: optax.GradientTransformation | None = None,
    compat: Compat | None = None,
    **options: Unpack[ProjectionOptions],
) -> optax.GradientTransformationExtraArgs:
    """Fira: GaLore's step, plus the rest of the gradient, scaled per channel.

    W <- W - lr k_t (scale P N + L((G - PR) s)), with R = PᵀG and s_j = ‖N_j‖ / ‖R_j‖.

    N = m / (sqrt(v) + eps) is Adam's direction in the subspace, k_t its bias correction, L the
    norm-growth limiter; s scales the part of the gradient outside of the subspace, a channel at a
    time, as Adam does the part inside. As published, `scale` is for the inside only.

    The released code also scales PR in the residual, so it is G - scale PR: a share 1 - scale of
    the gradient inside the subspace leaks out of Adam's hands. compat="fira" does that; without
    it nothing leaks.

        tx = sr.fira(1e-2, rank=128, roles=sr.discover(fn, params, x))

    Args:
        learning_rate: number or schedule.
        rank: r, as of `galore`.
        scale: alpha.
        b1, b2, eps: Adam's; eps is added before the bias correction.
        weight_decay: decoupled, of the weight after the step.
        gamma: largest growth of the norm of the residual's step.
        direction: what makes N of R, `adam_direction(b1, b2, eps)` by default.
        compat: "fira" (1.0.2): the leak, and the choices of `galore(compat="galore-torch")`.
        options: see `ProjectionOptions`; defaults as for `galore`.

    Returns:
        An optax transformation; with weight decay its update needs the parameters.

    State: as `galore` with Adam, and one float per matrix. Cost: that of `galore`.

    Raises:
        InputError: as `galore`; and side "full", which leaves no channels.

    Source: arXiv 2410.01623.
    """
    if compat is not None:
        one_of(compat, Compat, "compat")
    projection = Projection.of(rank, RELEASED if compat else {}, options)
    projection.check_side("fira")
    check_scalar("scale", scale)
    check_scalar("gamma", gamma)
    alpha = number(scale)
    inside = alpha if compat else 1.0

    def with_residual(step: Step) -> tuple[Array, Array | None]:
        assert step.norm is not None
        factors, low = stretch(step), step.low_gradient
        # P is orthonormal, so R tells how long the columns of G - inside PR are.
        lost = inside * (2 - inside) * energy(low, step)
        size = length(jnp.square(factors) * (energy(step.gradient, step) - lost))
        shorter, norm = limit_growth(size, step.norm, number(gamma))
        factors = factors * shorter[..., None, None]
        # P commutes with factors of columns: both terms in P take one product.
        low = alpha * step.low_update - inside * factors * low
        return factors * step.gradient.astype(jnp.float32) + step.projector.up(low), norm

    return optax.chain(
        low_rank(
            adam_direction(b1, b2, eps) if direction is None else direction,
            projection,
            Rule(with_residual, True),
            "fira's direction",
        ),
        hf_step(learning_rate, b1, b2, weight_decay=weight_decay),
    )
