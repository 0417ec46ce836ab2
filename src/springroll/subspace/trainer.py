"""`Trainer`: steps, refreshes and merges of weights whose gradients exist in subspaces only."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.core import Tracer
from jax.stages import Lowered, Wrapped

from springroll.deprecation import warn_renamed
from springroll.errors import InputError, brief
from springroll.subspace import gradients, refresh, schedule
from springroll.subspace.basis import Moments
from springroll.subspace.gradients import Run
from springroll.subspace.inner_reads import check_keeps_no_weights
from springroll.subspace.inner_state import check_moments
from springroll.subspace.inner_step import Moving, inner_step
from springroll.subspace.leaves import Layout
from springroll.subspace.per_path import PerPath
from springroll.subspace.schedule import Schedule
from springroll.subspace.stored_basis import Basis
from springroll.thin.factored_array import formed
from springroll.thin.roles import WeightRoles
from springroll.trees import PyTree, known_to_flax, tree_dataclass

Refresh = Literal["power", "random"]
Program = Literal["step", "probe", "refresh"]
Metrics: TypeAlias = dict[str, PyTree]


@tree_dataclass(static=["layout"], saved_as={"base": "params"})
@dataclass(frozen=True)
class LowGradState:
    """The state of a `Trainer`, as arrays: what a checkpoint holds.

    base: W, the weights as of their last refresh, and all other parameters as they are now.
    projectors: stream -> P (stacked, inputs, rank), orthonormal columns, float32 or as `basis_bits`
        says.
    low: path -> Sᵀ (stacked, outputs, rank) float32.
    opt: the inner optimizer's state over the trainable tree.
    skipped: () int32, steps without an update because the loss was not finite.
    schedule: when each layer is refreshed; on the host.
    layout: which parameter is what; no array.
    """

    base: PyTree
    projectors: dict[str, Basis]
    low: dict[str, Array]
    opt: PyTree
    skipped: Array
    schedule: Schedule
    layout: Layout

    @property
    def params(self) -> PyTree:
        """The model: W + P S and all other parameters, dense, in the types of the parameters.

        Short types are rounded to nearest. Computed whenever it is asked for, which costs a copy
        of the weights; `weights` costs none.
        """
        local = lambda leaf: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        return _dense(dataclasses.replace(self, base=jax.tree.map(local, self.base)).weights)

    @property
    def weights(self) -> PyTree:
        """The model with `Factored` leaves, for `sr.factored(fn)`: exact, and no copy."""
        return self.layout.weights(self.base, self.projectors, self.low)


@dataclass(frozen=True)
class Options:
    """How subspaces change; see `lowgrad`."""

    refresh_interval: PerPath
    turns: int
    refresh: Refresh
    moments: Moments
    widen: float | None
    scale: float | None
    accumulate: int
    seed: int
    in_axes: PyTree = 0


@dataclass(frozen=True)
class Trainer:
    """What `lowgrad` returns. Its methods take a state, which is used up, and return a new one.

    `update` is all a training loop needs.
    """

    roles: WeightRoles
    layout: Layout
    options: Options
    optimizer: optax.GradientTransformation
    run: Run = field(repr=False)
    example: tuple[PyTree, ...] | None = field(repr=False, default=None)
    compiled: dict[str, Wrapped] = field(repr=False, default_factory=dict)

    @property
    def plan(self) -> WeightRoles:
        """`roles` by their old name, for one version more."""
        warn_renamed("Trainer.plan", "Trainer.roles")
        return self.roles

    def init(self, params: PyTree, *, donate: bool = False) -> LowGradState:
        """The state of step 0; projectors are random until `update`.

        Args:
            params: arrays as the trainer was made for.
            donate: take the arrays themselves, which the first update deletes, and not a copy.

        Raises:
            InputError: other parameters; an optimizer that keeps copies of weights, or averages
                of which nothing tells how they change with a basis.
        """
        self.layout.check(params)
        params = jax.tree.map(jnp.asarray if donate else jnp.array, params)
        low = self.layout.zeros()
        return self.begin(params, low, self.inner_state(params, low))

    def inner_state(self, params: PyTree, low: dict[str, Array]) -> PyTree:
        """The inner optimizer's first state.

        Raises:
            InputError: it holds copies of weights, or averages of which nothing tells how they
                change with a basis.
        """
        trainable = lambda low: self.layout.trainable(params, dict(zip(paths, low, strict=True)))
        init, paths = lambda low: self.optimizer.init(trainable(low)), list(low)
        check_keeps_no_weights(init, list(low.values()))
        state = init(low.values())
        shapes = {path: leaf.shape for path, leaf in low.items()}
        check_moments(state, shapes, self.layout.paths, self.options.moments)
        return state

    def begin(self, base: PyTree, low: dict[str, Array], opt: PyTree) -> LowGradState:
        """The state of step 0 with these parts, which it takes over."""
        known_to_flax()
        projectors = refresh.random_bases(self.layout, self.key(0))
        timing = schedule.start(self.layout.streams, self.options.refresh_interval)
        return LowGradState(
            base, projectors, low, opt, jnp.zeros((), jnp.int32), timing, self.layout
        )

    def update(self, state: LowGradState, *batch: PyTree) -> tuple[LowGradState, Metrics]:
        """One training step, with a refresh of the layers whose turn it is."""
        return self.refresh(state, *batch) if self.due(state) else self.step(state, *batch)

    def due(self, state: LowGradState) -> bool:
        """Whether any layer's subspace is to be refreshed at this step. Decided on the host.

        Raises:
            InputError: the state is one of a function that is being traced.
        """
        _check_concrete(state)
        return any(layers.any() for layers in schedule.due(state.schedule).values())

    def step(self, state: LowGradState, *batch: PyTree) -> tuple[LowGradState, Metrics]:
        """One step of the inner optimizer on S and the other leaves, bases as they are."""
        _check_state(state)
        self._check_batch(batch)
        moving, frozen = self._apart(state)
        moving, metrics = self._jit("step")(moving, frozen, state.projectors, batch)
        return self._together(state, moving, frozen), metrics

    def refresh(
        self, state: LowGradState, *batch: PyTree, everything: bool = False
    ) -> tuple[LowGradState, Metrics]:
        """A step on this batch, then new subspaces from it for the layers that are due, or all."""
        _check_concrete(state)
        self._check_batch(batch)
        now = state.schedule
        chosen = schedule.due(now)
        if everything:
            chosen = {name: np.ones_like(layers) for name, layers in chosen.items()}
        moving, frozen = self._apart(state)
        name = "step" if self.options.refresh == "random" else "probe"
        moving, metrics, *probed = self._jit(name)(moving, frozen, state.projectors, batch)
        state = self._together(state, moving, frozen)
        directions = (
            probed[0] if probed else refresh.random_bases(self.layout, self.key(1, now.step))
        )
        layers, counts = listed(chosen)
        state, overlap = self._jit("refresh")(
            _untimed(state), directions, layers, counts, self.key(2, now.step)
        )
        timing = schedule.refreshed(
            now,
            self.layout.streams,
            chosen,
            self.options.turns,
            overlap if self.options.widen is not None else None,
            self.options.widen,
        )
        state = dataclasses.replace(state, schedule=schedule.advanced(timing))
        return state, {**metrics, "overlap": overlap}

    def apply(
        self, state: LowGradState, loss: Array, grads: PyTree
    ) -> tuple[LowGradState, Metrics]:
        """`step` with a gradient of the trainable tree (`layout.trainable`) from elsewhere."""
        moving, frozen = self._apart(state)
        moving, metrics = self._jit("apply")(moving, loss, grads)
        return self._together(state, moving, frozen), metrics

    def merge(self, state: LowGradState) -> LowGradState:
        """All of P S written into the weights, S = 0, same bases and moments."""
        _check_concrete(state)
        layers, counts = listed({s.name: np.ones(s.depth, bool) for s in self.layout.streams})
        key = self.key(3, state.schedule.step)
        merged, _ = self._jit("refresh")(_untimed(state), None, layers, counts, key)
        return dataclasses.replace(merged, schedule=state.schedule)

    def params(self, state: LowGradState) -> PyTree:
        """The model that the state stands for, dense: `state.params`."""
        return state.params

    def weights(self, state: LowGradState) -> PyTree:
        """The model with `Factored` leaves: `state.weights`."""
        return state.weights

    def lower(self, name: Program, state: LowGradState, *batch: PyTree) -> Lowered:
        """The lowered program of the hot step, or of the two halves of a refresh.

        Its memory: `.compile().memory_analysis()`. LowGradState and batch may be ShapeDtypeStructs.
        """
        if name == "refresh":
            depths = {s.name: np.zeros(s.depth, bool) for s in self.layout.streams}
            return self._jit(name).lower(
                _untimed(state), state.projectors, *listed(depths), self.key(0)
            )
        moving, frozen = self._apart(state)
        return self._jit(name).lower(moving, frozen, state.projectors, batch)

    def _check_batch(self, batch: tuple[PyTree, ...]) -> None:
        """Raise InputError unless the batch looks like the example, sizes aside."""
        if self.example is None:
            return
        kind = lambda a: (jnp.ndim(a), str(jnp.result_type(a)))
        given, expected = (jax.tree.map(kind, b) for b in (batch, self.example))
        if given != expected:
            raise InputError(
                f"the batch has (axes, type) {given}; the example batch had {expected}."
            )

    def key(self, *counters: int | Array | np.ndarray) -> Array:
        """The key of a random draw: 0 first bases, 1 new bases and 2, 3 rounding at a step."""
        key = jax.random.key(self.options.seed)
        for counter in counters:
            key = jax.random.fold_in(key, int(counter))
        return key

    def _apart(self, state: LowGradState) -> tuple[Moving, PyTree]:
        trainable = self.layout.trainable(state.base, state.low)
        return (trainable, state.opt, state.skipped), self.layout.frozen(state.base)

    def _together(self, state: LowGradState, moving: Moving, frozen: PyTree) -> LowGradState:
        trainable, opt, skipped = moving
        base, low = self.layout.base(trainable, frozen), self.layout.low(trainable)
        timing = schedule.advanced(state.schedule)
        return LowGradState(base, state.projectors, low, opt, skipped, timing, self.layout)

    def _jit(self, name: str) -> Wrapped:
        if name not in self.compiled:
            program = {
                "step": self._step,
                "probe": self._probe,
                "apply": self._apply,
                "refresh": self._refresh,
            }[name]
            self.compiled[name] = jax.jit(program, donate_argnums=0)
        return self.compiled[name]

    def _step(
        self, moving: Moving, frozen: PyTree, projectors: Mapping[str, Basis], batch: PyTree
    ) -> tuple[Moving, Metrics]:
        loss, aux, grads = self._gradients(moving, frozen, projectors, batch)
        return self._updated(moving, loss, aux, grads, (frozen, projectors))

    def _probe(
        self, moving: Moving, frozen: PyTree, projectors: Mapping[str, Basis], batch: PyTree
    ) -> tuple[Moving, Metrics, dict[str, Array]]:
        """`_step`, and where the subspaces should go: Z per stream."""
        loss, aux, grads = self._gradients(moving, frozen, projectors, batch)
        layout = self.layout
        directions = gradients.power(
            self.run,
            layout,
            self.options.accumulate,
            layout.base(moving[0], frozen),
            projectors,
            layout.low(moving[0]),
            layout.low(grads),
            batch,
            self.options.in_axes,
        )
        return *self._updated(moving, loss, aux, grads, (frozen, projectors)), directions

    def _gradients(
        self, moving: Moving, frozen: PyTree, projectors: Mapping[str, Basis], batch: PyTree
    ) -> tuple[Array, PyTree, PyTree]:
        parts, axes = self.options.accumulate, self.options.in_axes
        return gradients.gradients(
            self.run, self.layout, parts, moving[0], frozen, projectors, batch, axes
        )

    def _apply(self, moving: Moving, loss: Array, grads: PyTree) -> tuple[Moving, Metrics]:
        grads = jax.tree.map(lambda g, leaf: g.astype(leaf.dtype), grads, moving[0])
        return self._updated(moving, loss, None, grads)

    def _updated(
        self,
        moving: Moving,
        loss: Array,
        aux: PyTree,
        grads: PyTree,
        fixed: tuple[PyTree, Mapping[str, Basis]] | None = None,
    ) -> tuple[Moving, Metrics]:
        """The inner optimizer's step; `fixed`: the frozen weights and the projectors."""
        moving, metrics = inner_step(
            self.optimizer, self.layout, self.options.scale, moving, loss, grads, fixed
        )
        return moving, {"loss": loss, **metrics, "aux": aux}

    def _refresh(
        self,
        state: LowGradState,
        directions: Mapping[str, Basis] | None,
        layers: Mapping[str, Array],
        counts: Mapping[str, Array],
        key: Array,
    ) -> tuple[LowGradState, dict[str, Array]]:
        if directions is not None:  # of a batch whose loss was not finite, nothing is learned
            healthy = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(directions)]
            counts = jax.tree.map(lambda n: jnp.where(jnp.stack(healthy).all(), n, 0), counts)
        base, projectors, low, opt, overlap = refresh.refreshed(
            self.layout,
            state.base,
            state.projectors,
            state.low,
            state.opt,
            directions,
            layers,
            counts,
            key,
            self.options.moments,
        )
        state = dataclasses.replace(state, base=base, projectors=projectors, low=low, opt=opt)
        return state, overlap


def _check_state(state: LowGradState) -> None:
    """Raise InputError for what is no state."""
    if not isinstance(state, LowGradState):
        raise InputError(
            f"the first argument is {brief(state)}; expected the state, as trainer.init(params) and"
            " trainer.update(state, *batch) return it"
        )


def _check_concrete(state: LowGradState) -> None:
    """Raise InputError for a state of a traced function, whose schedule nobody can read."""
    _check_state(state)
    if isinstance(state.schedule.step, Tracer):
        raise InputError(
            "which layers are due is decided on the host, not under jit, scan or vmap: call"
            " trainer.update outside of them (its programs are compiled), or trainer.step inside"
            " and trainer.refresh outside where trainer.due(state)"
        )


def _untimed(state: LowGradState) -> LowGradState:
    """The state without its schedule, which stays on the host."""
    return dataclasses.replace(state, schedule=None)


_dense = jax.jit(formed)


def listed(chosen: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.int32]]:
    """stream -> indices of the chosen layers first (depth,), and how many they are."""
    layers = {n: np.argsort(~c, kind="stable").astype(np.int32) for n, c in chosen.items()}
    return layers, {n: np.int32(c.sum()) for n, c in chosen.items()}
