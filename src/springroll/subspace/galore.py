"""GaLore: any optimizer on gradients projected to a low rank (arXiv 2403.03507)."""

from typing import Literal, Unpack

import optax
from jax import Array

from springroll.deprecation import renamed_keywords
from springroll.quant.transformation import number
from springroll.ranges import check_scalar
from springroll.subspace.low_rank import Rule, Step, low_rank
from springroll.subspace.matrix_view import one_of
from springroll.subspace.per_path import PerPath
from springroll.subspace.projection import Projection, ProjectionOptions

Compat = Literal["galore-torch"]

# What the released PyTorch code does; its signs of singular vectors are arbitrary, ours are not.
RELEASED: ProjectionOptions = {
    "rows": "out",
    "side": "std",
    "refresh": "svd",
    "moments": "keep",
    "stagger": False,
}


@renamed_keywords(update_gap="refresh_interval", plan="roles")
def galore(
    inner: optax.GradientTransformation,
    rank: PerPath,
    *,
    scale: float = 0.25,
    compat: Compat | None = None,
    **options: Unpack[ProjectionOptions],
) -> optax.GradientTransformationExtraArgs:
    """GaLore: any optimizer, working on gradients that are projected to a low rank.

    R = PᵀG (r, n), W <- W + scale P inner(R).

    The inner optimizer holds moments of shape (r, n) instead of (m, n). Its weight decay is for the
    whole weight, as it would be without projection. One that reads weights for more than that
    (Adafactor, LAMB, LARS, adaptive clipping) sees PᵀW, so that norms and decay are those of the
    subspace, at 2mnr FLOPs more; one that keeps copies of weights (Prodigy, schedule-free) is
    refused. Parameters that are not selected are left to it as they are. Every matrix of a stack
    (layers, experts) has a projector of its own.

        tx = sr.galore(optax.adamw(1e-2), rank=128, roles=sr.discover(fn, params, x))

    By default the input side is projected, by one power step every 200 steps, the matrices taking
    turns, and the moments are rotated into the new basis: the result does not depend on the signs
    of basis vectors, no SVD is computed, and no step is much slower than others.

    Args:
        inner: any optax transformation, `quantize_state(...)` and `optax.contrib.muon` among them.
        rank: r; min(m, n) where a matrix is smaller, with a warning. One number; patterns on paths
            and a number for each, {"*": 128, "*head": 64}, of several that match the last; or a
            function of the path.
        scale: alpha of the paper.
        compat: "galore-torch" makes the choices of the released code (1.0): parameters are (out,
            in), `side` "std", SVD, moments kept, all matrices on one step. With
            `hf_adamw(...)` inside the updates are those of GaLoreAdamW.
        options: see `ProjectionOptions`; they win over `compat`.

    Returns:
        An optax transformation; where `inner` decays weights its update needs the parameters.

    State: per m x n matrix r m for P, in `basis_bits`, and what `inner` keeps for (r, n), in
    float32; with `quantize_state` inside and bases in 8 bits LLaMA-7B keeps 16.9 % of the state of
    AdamW in bfloat16. Cost: 4mnr FLOPs a step; a refresh 4mnr and a QR of (m, r).

    Raises:
        InputError: a name that does not exist, a rank below 1; in `init`, a selected vector, a
            pattern that matches nothing, roles of other parameters, an inner optimizer that keeps
            copies of weights, or state of which nothing tells how it changes with the basis.

    Source: arXiv 2403.03507; the power step is that of PowerSGD (1905.13727), rotated moments are
    from LDAdam (2410.16103).
    """
    if compat is not None:
        one_of(compat, Compat, "compat")
    check_scalar("scale", scale)
    projection = Projection.of(rank, RELEASED if compat else {}, options)

    def back(step: Step) -> tuple[Array, None]:
        return number(scale) * step.projector.up(step.low_update), None

    return low_rank(inner, projection, Rule(back, limited=False), "galore")
