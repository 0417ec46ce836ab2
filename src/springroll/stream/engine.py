"""A training step whose weights pass through the device layer by layer.

The step is that of `jax.grad` of the whole loss and an optimizer; what differs is where things are
and when. On the device are a window of layers, the bundle of the rest (embedding, last norm, head),
the gradient of one layer, and the inputs of the layers, which go to the host when they are too
many. Sources: arXiv 2604.05091 (weights and states on the host, stateless layer programs), arXiv
2512.17570 (all micro-batches of a layer before the next).
"""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from springroll.errors import InputError
from springroll.models.protocols import Stages
from springroll.stream import schedule
from springroll.stream.clipping import Clip, factor
from springroll.stream.conveyor import Conveyor, Passing, Stop
from springroll.stream.programs import Join, Programs, whole
from springroll.stream.saved_activations import Everything, SavedInputs, Saving
from springroll.stream.schedule import Visit
from springroll.stream.update import Gradient, Update

WEIGHTS = ("weights",)
Operands = Callable[[Passing], tuple[Any, Any]]
Metrics = dict[str, Any]


class Engine:
    """Steps of one model over one store.

    Args:
        model: its three parts, such as a `Decoder`.
        conveyor: over a store of the layers, in order, and last the rest. A layer may be any bundle
            that `model.block` computes.
        update: what becomes of gradients.
        parts: micro-batches that a batch is cut into.
        clip: of gradients.
        kept: layers (the last ones) whose inputs stay on the device; None for all.
        order: of the visits, see `schedule`.
        operands: what of a bundle is differentiated, and what else there is of it; `join` makes
            the weights of the two.
    """

    def __init__(
        self,
        model: Stages,
        conveyor: Conveyor,
        update: Update,
        *,
        parts: int = 1,
        clip: Clip = Clip(),  # noqa: B008
        kept: int | None = None,
        order: schedule.Schedule = "layer-major",
        join: Join = whole,
        operands: Operands = lambda passing: (passing.arrays["weights"], None),
    ):
        self.conveyor, self.update, self.parts = conveyor, update, parts
        self.clip = clip.checked()
        self.layers = conveyor.store.bundles - 1
        self.programs = Programs(model, parts, join)
        self.operands = operands
        self.saving: Saving = model if isinstance(model, Saving) else Everything()
        if order == "checkpointed" and isinstance(model, Saving):
            raise InputError("the checkpointed schedule computes whole layers; take layer-major")
        plan = {"layer-major": schedule.layer_major, "checkpointed": schedule.checkpointed}[order]
        self.visits = plan(self.layers, parts)
        self._kept = self.layers if kept is None else kept

    def step(self, tokens: Array, norm: Array | None = None) -> tuple[Metrics, Array]:
        """One step on tokens (batch, time + 1): (metrics, norm for the next step).

        `norm` is that of the gradient of the step before, 0 before the first; only clipping by
        "previous" looks at it. Metrics are those of the model's `finish`, averaged, `loss`, NaN
        where the step was not taken, and `grad_norm`.
        """
        return _Step(self, self._cut(tokens, self.parts), norm).run()

    def score(self, tokens: Any, rows: int) -> Metrics:
        """Metrics of the model on tokens (n, time + 1), a mean; at most `rows` rows at a time."""
        count = tokens.shape[0]
        together = next(n for n in range(min(rows, count), 0, -1) if count % n == 0)
        parts = [tokens[i : i + together] for i in range(0, count, together)]
        return _Forward(self, parts).metrics()

    def _cut(self, tokens: Any, parts: int) -> list[Any]:
        """Every parts-th row, as gradients are accumulated elsewhere."""
        if tokens.shape[0] % parts:
            raise InputError(
                f"a batch of {tokens.shape[0]} sequences cannot be cut into {parts} equal parts"
            )
        return [tokens[i::parts] for i in range(parts)]


class _Forward:
    """The visits that lead to a loss."""

    def __init__(self, engine: Engine, parts: list[Any]):
        self.engine, self.programs = engine, engine.programs
        self.conveyor = engine.conveyor
        self.tokens = jax.device_put(parts, self.conveyor.link.on_device)
        self.x: dict[int, Any] = {}
        self.stats: dict[int, dict[int, Any]] = {part: {} for part in range(len(parts))}
        self.found: dict[int, tuple[Array, Metrics]] = {}
        self.visits = schedule.forward_only(engine.layers, len(parts))
        self.rest_fields = WEIGHTS

    def metrics(self) -> Metrics:
        self.walk()
        return averaged([{**metrics, "loss": loss} for loss, metrics in self.found.values()])

    def walk(self) -> None:
        """Every visit, with its bundle on the device."""
        rest = self.engine.layers
        self.rest = self.conveyor.hold(rest, self.rest_fields)
        try:
            stops = [Stop(v.layer, self.fields(v), v.ahead) for v in self.visits if v.layer >= 0]
            bundles = self.conveyor.walk(stops)
            for visit in self.visits:
                passing = next(bundles) if visit.layer >= 0 else self.rest
                getattr(self, visit.phase.replace(" ", "_"))(visit, passing)
            bundles.close()
        finally:
            self.rest.leave()

    def fields(self, visit: Visit) -> tuple[str, ...]:
        return WEIGHTS

    def embed(self, visit: Visit, rest: Passing) -> None:
        for part in visit.parts:
            self.x[part], token = self.programs.embed(
                *self.engine.operands(rest), self.tokens[part]
            )
            rest.until(token)

    def forward(self, visit: Visit, layer: Passing) -> None:
        for part in visit.parts:
            x, stats, token = self.programs.forward(
                *self.engine.operands(layer), self.entering(visit, part), index(visit.layer)
            )
            self.x[part], self.stats[part][visit.layer] = x, stats
            layer.until(token)

    def entering(self, visit: Visit, part: int) -> Any:
        return self.x[part]

    def finish(self, visit: Visit, rest: Passing) -> None:
        for part in visit.parts:
            self.found[part] = self.programs.score(
                *self.engine.operands(rest), self.x.pop(part), self.listed(part), self.tokens[part]
            )
            rest.until(self.found[part][0])

    def listed(self, part: int) -> list[Any]:
        return [self.stats[part][layer] for layer in range(self.engine.layers)]


class _Step(_Forward):
    """And those that lead back, with updates on the way."""

    def __init__(self, engine: Engine, parts: list[Any], norm: Array | None):
        super().__init__(engine, parts)
        self.visits = engine.visits
        self.norm = jnp.zeros((), jnp.float32) if norm is None else norm
        kept = engine.layers - engine._kept
        self.saved = SavedInputs(self.conveyor.link, lambda i: i >= kept, engine.saving)
        self.dx: dict[int, Any] = {}
        self.d_stats: dict[int, Any] = {}
        self.rest_grads: Any = None
        self.grads: Any = None  # of the layer at hand
        self.squares: list[Array] = []
        self.held: dict[int, Any] = {}
        self.good: Any = None
        if not engine.clip.waits:
            self.rest_fields = self.engine.update.fields

    def run(self) -> tuple[Metrics, Array]:
        self.walk()
        norm = norm_of(self.squares)
        if self.engine.clip.waits:
            self.good = all_finite(self.good, norm)
            limit = np.float32(self.engine.clip.limit)
            common = Gradient(None, factor(limit, norm), self.good)
            self.engine.update.apply_all(self.conveyor, self.held, common)
        found = [{**metrics, "loss": loss} for loss, metrics in self.found.values()]
        metrics = averaged(found)
        metrics |= {"loss": jnp.where(self.good, metrics["loss"], jnp.nan), "grad_norm": norm}
        return metrics, jnp.where(self.good, norm, self.norm)

    def fields(self, visit: Visit) -> tuple[str, ...]:
        changes = visit.phase == "backward" and not self.engine.clip.waits
        return self.engine.update.fields if changes else WEIGHTS

    def entering(self, visit: Visit, part: int) -> Any:
        if self.saved.has(visit.layer, part):  # a replay
            return self.saved.look(visit.layer, part)
        x = self.x[part]
        if visit.keep:
            self.saved.keep(visit.layer, part, x)
        return x

    def finish(self, visit: Visit, rest: Passing) -> None:
        self.saved.ahead(self.engine.layers - 1)
        for part in visit.parts:
            loss, metrics, self.rest_grads, self.dx[part], self.d_stats[part], token = (
                self.programs.finish(
                    *self.engine.operands(rest),
                    self.x.pop(part),
                    self.listed(part),
                    self.tokens[part],
                    self.rest_grads,
                )
            )
            self.found[part] = loss, metrics
            rest.until(token)
        self.good = all_finite(True, *(loss for loss, _ in self.found.values()))

    def backward(self, visit: Visit, layer: Passing) -> None:
        at = visit.layer
        self.saved.ahead(at - 1)
        for part in visit.parts:
            self.grads, self.dx[part], token = self.programs.backward(
                *self.engine.operands(layer),
                self.saved.take(at, part),
                index(at),
                self.dx[part],
                self.d_stats[part][at],
                self.grads,
            )
            layer.until(token)
        grads, self.grads = self.grads, None
        self.settle(layer, grads, averaged([stats[at] for stats in self.stats.values()]))

    def embed_backward(self, visit: Visit, rest: Passing) -> None:
        for part in visit.parts:
            self.rest_grads, token = self.programs.embed_backward(
                *self.engine.operands(rest), self.tokens[part], self.dx.pop(part), self.rest_grads
            )
            rest.until(token)
        self.settle(rest, self.rest_grads, None)
        self.rest_grads = None

    def settle(self, passing: Passing, grads: Any, stats: Any) -> None:
        """The gradient of a bundle is whole: apply it, or hold it until the norm is known."""
        clip = self.engine.clip
        squared = self.programs.square(grads)
        self.squares.append(squared)
        if clip.waits:
            small = self.programs.narrow(grads, passing.arrays["weights"])
            self.held[passing.bundle] = self.conveyor.link.fetch((small, stats))
            return
        self.good = all_finite(self.good, squared)
        scale = jnp.ones((), jnp.float32)
        if clip.limit is not None:
            norm = jnp.sqrt(squared) if clip.by == "layer" else self.norm
            scale = factor(np.float32(clip.limit), norm)
        gradient = Gradient(grads, scale, self.good, stats)
        self.engine.update.apply(self.conveyor, passing, gradient)


@jax.jit
def averaged(trees: list[Any]) -> Any:
    """The mean of the real leaves, the sum of integers (counts)."""

    def one(*leaves: Any) -> Any:
        total: Any = functools.reduce(operator.add, leaves)
        return total / len(leaves) if jnp.issubdtype(total.dtype, jnp.floating) else total

    return jax.tree.map(one, *trees)


@jax.jit
def all_finite(good: Any, *numbers: Array) -> Array:
    """Whether all are, and it was good before."""
    return functools.reduce(operator.and_, map(jnp.isfinite, numbers), jnp.asarray(good))


@jax.jit
def norm_of(squares: list[Array]) -> Array:
    """The norm of a whole gradient, from the squared norms of its parts."""
    return jnp.sqrt(jnp.stack(squares).sum())


def index(layer: int) -> Any:
    return np.int32(layer)
