"""GaLore: any optimizer on gradients projected to a low rank (arXiv 2403.03507)."""

from __future__ import annotations

from collections.abc import Mapping

import optax

from springroll.factored.plan import LeafPlan
from springroll.lowgrad.low_rank import Layout, Rule, low_rank
from springroll.lowgrad.matrix_view import Select, Side
from springroll.lowgrad.projector_refresh import Refresh, Subspace
from springroll.lowgrad.subspace import Moments


def galore(
    inner: optax.GradientTransformation,
    rank: int,
    *,
    update_gap: int = 200,
    scale: float = 0.25,
    side: Side = "in",
    refresh: Refresh = "power",
    moments: Moments = "rotate",
    stagger: bool = True,
    select: Select = None,
    plan: Mapping[str, LeafPlan] | None = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """`inner` on gradients of rank `rank`: W += scale P inner(PᵀG)."""
    subspace = Subspace(rank, update_gap, side, refresh, moments, stagger, seed)
    rule = Rule(lambda step: (scale * step.projector.up(step.low_update), None), limited=False)
    return low_rank(inner, subspace, rule, Layout(select, plan))
