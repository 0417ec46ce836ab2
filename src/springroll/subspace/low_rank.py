"""The frame that GaLore, APOLLO and Fira share: an optax transformation of low-rank gradients.

Each selected gradient G is projected, R = PᵀG; an inner optimizer that only ever sees R says how to
step there; a rule makes of G, R and that low-rank step the step of the full weight. What is not
selected goes through the inner optimizer as it is.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import Array

from springroll.quant.transformation import is_placeholder, transformation, wrapped
from springroll.subspace.inner_reads import check_keeps_no_weights, reader, reads_weights
from springroll.subspace.inner_state import check_moments, find_moments, state_leaves
from springroll.subspace.inner_turns import check_reads_no_coordinates
from springroll.subspace.matrix_view import MatrixView
from springroll.subspace.projection import Projection, Projector
from springroll.subspace.projector_refresh import renewed, turn
from springroll.trees import PyTree, named_leaves

Views: TypeAlias = list[MatrixView | None]


class LowRankState(NamedTuple):
    """All that a low-rank transformation carries: arrays only."""

    step: Array  # () int32, updates so far
    projectors: PyTree  # like the parameters: a Projector where one is stored, else None
    norms: PyTree  # like the parameters: (*stack,) float32 of the limiter, or None
    inner: PyTree  # of the inner optimizer, which sees low-rank leaves


class Step(NamedTuple):
    """What a rule is given for one parameter."""

    gradient: Array  # G (*stack, m, n)
    low_gradient: Array  # R float32, of the shape the projector gives
    low_update: Array  # what the inner optimizer made of R
    projector: Projector
    norm: Array | None  # (*stack,) of the limiter


class Rule(NamedTuple):
    """From the low-rank step to the full one: (update (*stack, m, n), the limiter's next norm)."""

    apply: Callable[[Step], tuple[Array, Array | None]]
    limited: bool  # whether it keeps a norm


@dataclass(frozen=True)
class LowRank:
    """`init` and `update` of the transformation.

    Decoupled weight decay of the inner optimizer reaches the whole weight, by the amount the inner
    optimizer says and not `scale` times it. An update is linear in the weights that decay, so the
    inner optimizer is shown zeros in place of a projected weight, and the derivative of its update
    in the direction of ones is the decay: a constant to the compiler, exact, and no second run.

    An inner optimizer whose update depends on weights in another way (their norms) is shown the
    projected weights, PᵀW, and its decay is of those. Its program tells which of the two it is.
    """

    inner: optax.GradientTransformationExtraArgs
    projection: Projection
    rule: Rule
    reading: dict[Hashable, bool] = field(default_factory=dict, compare=False, repr=False)
    announced: list[bool] = field(default_factory=list, compare=False, repr=False)

    def init(self, params: PyTree) -> LowRankState:
        if is_placeholder(params):  # only the inner state has trees like the parameters
            return LowRankState(jnp.zeros((), jnp.int32), 0, 0, self.inner.init(params))
        views = self.projection.views(params)
        if not self.announced:  # a wrapper may call it again, for every layer
            self.announced.append(True)
            self.projection.warn_capped(views)
        leaves, structure = jax.tree.flatten(params)
        low = [
            x if v is None else jnp.zeros(self.projection.low_shape(v))
            for x, v in zip(leaves, views, strict=True)
        ]
        at = [i for i, v in enumerate(views) if v]

        def from_low(projected: list[Array]) -> PyTree:
            given = dict(enumerate(low)) | dict(zip(at, projected, strict=True))
            return self.inner.init(structure.unflatten(list(given.values())))

        check_keeps_no_weights(from_low, [low[i] for i in at])
        per_view = lambda make: structure.unflatten([v and make(v) for v in views])
        inner = self.inner.init(structure.unflatten(low))
        shapes = {v.path: low[i].shape for i, v in enumerate(views) if v}
        check_moments(inner, shapes, named_leaves(params), self.projection.moments)
        return LowRankState(
            step=jnp.zeros((), jnp.int32),
            projectors=per_view(
                lambda v: self.projection.start(v) if self.projection.stored else None
            ),
            norms=per_view(lambda v: jnp.zeros(v.stack) if self.rule.limited else None),
            inner=inner,
        )

    def update(
        self,
        updates: PyTree,
        state: LowRankState,
        params: PyTree = None,
        *,
        layer: Array | int = 0,
        **extra: object,
    ) -> tuple[PyTree, LowRankState]:
        """As in optax.

        A stack can be updated a layer at a time, each with its slice of the state: if the tree is
        that of the whole less the stacked axis, `layer` is the index of the layer, and the result
        is that of the whole. Only the random bases at the start differ.
        """
        views = self.projection.views(updates)
        gradients, structure = jax.tree.flatten(updates)
        weights = None if params is None else structure.flatten_up_to(params)
        norms = structure.flatten_up_to(state.norms)
        matrices = [v.matrix(g) if v else g for v, g in zip(views, gradients, strict=True)]
        if self.projection.stored:
            stored = structure.flatten_up_to(state.projectors)
            projectors, inner = self._refresh(views, state, layer, matrices, stored)
            after = structure.unflatten(projectors)
        else:
            projectors = [v and self.projection.drawn(v, state.step, layer) for v in views]
            inner, after = state.inner, state.projectors
        low = [p.down(x) if p else x for p, x in zip(projectors, matrices, strict=True)]

        def shown(i: int) -> Array:
            view, projector = views[i], projectors[i]
            assert view is not None and projector is not None and weights is not None
            return projector.down(view.matrix(weights[i]))

        steps, decays, inner = self._inner_update(
            views, structure, low, weights, shown, inner, extra
        )
        for i, (view, projector) in enumerate(zip(views, projectors, strict=True)):
            if view is None or projector is None:
                continue
            with jax.named_scope("low_rank_update"):
                full, norms[i] = self.rule.apply(
                    Step(matrices[i], low[i], steps[i], projector, norms[i])
                )
            decay = decays[i]
            if weights is not None and decay is not None:
                full = full + decay * view.matrix(weights[i]).astype(jnp.float32)
            steps[i] = view.restore(full).astype(gradients[i].dtype)
        return structure.unflatten(steps), LowRankState(
            step=jnp.asarray(optax.safe_increment(state.step)),
            projectors=after,
            norms=structure.unflatten(norms),
            inner=inner,
        )

    def _refresh(
        self,
        views: Views,
        state: LowRankState,
        layer: Array | int,
        matrices: list[Array],
        projectors: list[Projector | None],
    ) -> tuple[list[Projector | None], PyTree]:
        """Projectors, and the inner state with its moments in their coordinates."""
        projection = self.projection
        leaves, structure = state_leaves(state.inner)
        chosen = {v.path: v for v in views if v}
        shapes = {v.path: projection.low_shape(v) for v in chosen.values()}
        moments = find_moments(state.inner, shapes) if projection.moments != "keep" else []
        projectors = list(projectors)
        for i, (view, projector) in enumerate(zip(views, projectors, strict=True)):
            if view is None or projector is None:
                continue
            own = [m for m in moments if chosen[m.path] is view]
            with jax.named_scope("refresh_projector"):
                projectors[i], rotated = renewed(
                    projection,
                    view,
                    turn(projection, view, len(chosen), state.step, layer),
                    state.step,
                    matrices[i],
                    projector,
                    [(leaves[m.at], m.order) for m in own],
                )
            for moment, leaf in zip(own, rotated, strict=True):
                leaves[moment.at] = leaf
        return projectors, jax.tree.unflatten(structure, leaves)

    def _inner_update(
        self,
        views: Views,
        structure: PyTree,
        low: list[Array],
        weights: list[Array] | None,
        shown: Callable[[int], Array],
        state: PyTree,
        extra: Mapping[str, object],
    ) -> tuple[list[Array], list[Array | None], PyTree]:
        """The inner steps, the decay of each projected weight (*stack, 1, 1), and the state.

        `shown(i)` is the projection of the weight number i.
        """
        gradients = structure.unflatten(low)

        def run(projected: list[Array] | None) -> tuple[list[Array], PyTree]:
            params = None
            if weights is not None and projected is not None:
                pairs = zip(views, weights, projected, strict=True)
                params = structure.unflatten([x if v else w for v, w, x in pairs])
            with jax.numpy_dtype_promotion("standard"):  # optimizers need not be strict
                steps, after = self.inner.update(gradients, state, params, **extra)
            return structure.flatten_up_to(steps), after

        if weights is None:
            steps, after = run(None)
            return steps, [None] * len(low), after
        if self._reads(run, views, low, structure, (weights, state, extra)):
            pairs = enumerate(zip(views, low, strict=True))
            steps, after = run([shown(i) if v else x for i, (v, x) in pairs])
            return steps, [None] * len(low), after
        zeros, ones = [jnp.zeros_like(x) for x in low], [jnp.ones_like(x) for x in low]
        steps, slopes, after = jax.jvp(run, (zeros,), (ones,), has_aux=True)
        return (
            steps,
            [s[..., :1, :1] if v else None for v, s in zip(views, slopes, strict=True)],
            after,
        )

    def _reads(
        self,
        run: Callable[..., PyTree],
        views: Views,
        low: list[Array],
        params: PyTree,
        given: tuple[PyTree, PyTree, Mapping[str, object]],
    ) -> bool:
        """Whether the inner optimizer reads weights; asked once for arguments of these types.

        params: the structure of the parameters; given: all else that `run` depends on, the extra
        arguments last.

        Raises:
            InputError: it reads them number by number.
        """
        leaves, structure = jax.tree.flatten((low, given))
        kind = lambda x: (getattr(x, "shape", ()), str(getattr(x, "dtype", type(x))))
        key = params, structure, tuple(map(kind, leaves))
        if key not in self.reading:
            self.reading[key] = reads_weights(run, low)
            if self.reading[key]:
                axes = [v.turning(self.projection.side) if v else () for v in views]
                shown = params.unflatten(low)
                who = reader(run, low)
                check_reads_no_coordinates(self.inner, shown, axes, who, **given[-1])
        return self.reading[key]


def low_rank(
    inner: optax.GradientTransformation, projection: Projection, rule: Rule, who: str
) -> optax.GradientTransformationExtraArgs:
    """The optax transformation of a rule; `who` is its name."""
    frame = LowRank(wrapped(inner, who), projection, rule)
    return transformation(frame.init, frame.update)
