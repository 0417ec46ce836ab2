"""The frame that GaLore, APOLLO and Fira share: an optax transformation of low-rank gradients.

Each selected gradient G is projected, R = PᵀG; an inner optimizer that only ever sees R says how to
step there; a rule makes of G, R and that low-rank step the step of the full weight. What is not
selected goes through the inner optimizer as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from springroll.factored.plan import LeafPlan
from springroll.lowgrad.inner_state import find_moments, state_leaves
from springroll.lowgrad.matrix_view import MatrixView, Select, matrix_views
from springroll.lowgrad.projector import Projector
from springroll.lowgrad.projector_refresh import Subspace, renewed, turn


class LowRankState(NamedTuple):
    """All that a low-rank transformation carries: arrays only."""

    step: Array  # () int32, updates so far
    projectors: Any  # like the parameters: a Projector where it is selected and stored, else None
    norms: Any  # like the parameters: (*stack,) float32 of the limiter, or None
    inner: Any  # of the inner optimizer, which sees low-rank leaves


class Step(NamedTuple):
    """What a rule is given for one parameter; matrices are (*stack, m, n)."""

    gradient: Array
    low_gradient: Array  # R, float32, of the shape the projector gives
    low_update: Array  # what the inner optimizer made of R
    projector: Projector
    norm: Array | None  # of the limiter


class Rule(NamedTuple):
    """From the low-rank step to the full one: (update (*stack, m, n), the limiter's next norm)."""

    apply: Callable[[Step], tuple[Array, Array | None]]
    limited: bool  # whether it keeps a norm


@dataclass(frozen=True)
class Layout:
    """Which parameters are projected and where their inputs and outputs are; see `matrix_views`."""

    select: Select = None
    plan: Mapping[str, LeafPlan] | None = None
    rows: Literal["in", "out"] = "in"
    root: str = ""

    def views(self, params: Any, rank: int) -> list[MatrixView | None]:
        return matrix_views(
            params, rank, select=self.select, plan=self.plan, rows=self.rows, root=self.root
        )


def low_rank(
    inner: optax.GradientTransformation, subspace: Subspace, rule: Rule, layout: Layout
) -> optax.GradientTransformationExtraArgs:
    """The transformation; `update` takes `layer`, the index of a layer that is updated alone.

    Decoupled weight decay of the inner optimizer reaches the whole weight, by the amount the inner
    optimizer says and not `scale` times it: its update is linear in the weights it is shown, so it
    is shown zeros in place of a projected weight, and the derivative of its update in the direction
    of ones is the decay. No second run: the compiler sees a constant.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: Any) -> LowRankState:
        views = layout.views(params, subspace.rank)
        structure = jax.tree.structure(params)
        each = lambda make: structure.unflatten([None if v is None else make(v) for v in views])
        return LowRankState(
            step=jnp.zeros((), jnp.int32),
            projectors=each(subspace.start),
            norms=each(lambda v: jnp.zeros(v.stack) if rule.limited else None),
            inner=inner.init(low_tree(params, views)),
        )

    def low_tree(params: Any, views: list[MatrixView | None]) -> Any:
        leaves, structure = jax.tree.flatten(params)
        return structure.unflatten(
            x if v is None else jnp.zeros(subspace.low_shape(v))
            for x, v in zip(leaves, views, strict=True)
        )

    def update(
        grads: Any,
        state: LowRankState,
        params: Any = None,
        *,
        layer: Array | int = 0,
        **extra: Any,
    ) -> tuple[Any, LowRankState]:
        views = layout.views(grads, subspace.rank)
        gradients, structure = jax.tree.flatten(grads)
        projectors = structure.flatten_up_to(state.projectors)
        norms = structure.flatten_up_to(state.norms)
        weights = None if params is None else structure.flatten_up_to(params)
        matrices = [g if v is None else v.matrix(g) for g, v in zip(gradients, views, strict=True)]
        projectors, inner_state = renew(views, state.step, layer, matrices, projectors, state.inner)
        low = [
            g if v is None else p.down(g)
            for g, v, p in zip(matrices, views, projectors, strict=True)
        ]
        steps, decays, inner_state = inner_update(
            views, structure, low, weights, inner_state, extra
        )
        for i, view in enumerate(views):
            if view is None:
                continue
            full, norms[i] = rule.apply(
                Step(matrices[i], low[i], steps[i], projectors[i], norms[i])
            )
            if weights is not None:
                full = full + decays[i] * view.matrix(weights[i]).astype(jnp.float32)
            steps[i] = view.restore(full).astype(gradients[i].dtype)
        return structure.unflatten(steps), LowRankState(
            step=jnp.asarray(optax.safe_increment(state.step)),
            projectors=structure.unflatten(projectors),
            norms=structure.unflatten(norms),
            inner=inner_state,
        )

    def renew(
        views: list[MatrixView | None],
        count: Array,
        layer: Array | int,
        matrices: list[Array],
        projectors: list[Any],
        inner_state: Any,
    ) -> tuple[list[Any], Any]:
        """Projectors and moments after this step's refresh."""
        nodes, inner_structure = state_leaves(inner_state)
        chosen = {v.path.removeprefix(layout.root).lstrip("/"): v for v in views if v is not None}
        kept = find_moments(inner_state, chosen) if subspace.moments != "keep" else []
        projectors = list(projectors)
        for i, view in enumerate(views):
            if view is None:
                continue
            mine = [m for m in kept if chosen[m.path] is view]
            projectors[i], moments = renewed(
                subspace,
                view.stack,
                turn(subspace, view, len(chosen), count, layer),
                jax.random.fold_in(subspace.key(view), count),
                matrices[i],
                projectors[i],
                [(nodes[m.at], m.order) for m in mine],
            )
            for moment, node in zip(mine, moments, strict=True):
                nodes[moment.at] = node
        return projectors, jax.tree.unflatten(inner_structure, nodes)

    def inner_update(
        views: list[MatrixView | None],
        structure: Any,
        low: list[Array],
        weights: list[Any] | None,
        inner_state: Any,
        extra: dict[str, Any],
    ) -> tuple[list[Any], list[Any], Any]:
        """The inner steps, the decay of each projected weight (*stack, 1, 1), and the state."""
        gradients = structure.unflatten(low)

        def run(shown: list[Array] | None) -> tuple[list[Any], Any]:
            seen = None
            if weights is not None and shown is not None:
                pairs = zip(views, weights, shown, strict=True)
                seen = structure.unflatten([w if v is None else x for v, w, x in pairs])
            with jax.numpy_dtype_promotion("standard"):  # optimizers need not be strict
                steps, after = inner.update(gradients, inner_state, seen, **extra)
            return structure.flatten_up_to(steps), after

        if weights is None:
            steps, inner_state = run(None)
            return steps, [None] * len(low), inner_state
        zeros, ones = [jnp.zeros_like(x) for x in low], [jnp.ones_like(x) for x in low]
        steps, slopes, inner_state = jax.jvp(run, (zeros,), (ones,), has_aux=True)
        pairs = zip(views, slopes, strict=True)
        return steps, [None if v is None else s[..., :1, :1] for v, s in pairs], inner_state

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]
