"""A training step whose weights pass through the device layer by layer.

The step is that of `jax.grad` of the whole loss and an optimizer; what differs is where things are
and when. On the device are a window of layers, the gradient of one layer, and the inputs of the
layers, which go to the host when they are too many; before and after them what is read of the rest
(embedding, last norm, head). Sources: arXiv 2604.05091 (weights and states on the host, stateless
layer programs), arXiv 2512.17570 (all micro-batches of a layer before the next).
"""

import itertools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from springroll.errors import InputError
from springroll.models.protocols import Metrics, Stages
from springroll.ranges import COUNT, check_number
from springroll.stream.batch_rows import rows_of, rows_together
from springroll.stream.clipping import Clip, clip_factor
from springroll.stream.conveyor import Conveyor, Passing, Stop
from springroll.stream.rest_gradient import RestGradient
from springroll.stream.rest_passage import RestPassage
from springroll.stream.saved_activations import SaveAll, SavedInputs, Saving
from springroll.stream.step_programs import Join, Reads, StepPrograms, all_weights
from springroll.stream.step_sums import all_finite, averaged, begun, index, norm_of, square
from springroll.stream.store import HostStore
from springroll.stream.update import Gradient, Held, Update, merged
from springroll.stream.visit_order import ORDERS, Phase, Visit, VisitOrder, forward_only
from springroll.trees import PyTree

WEIGHTS = ("weights",)
Operands: TypeAlias = Callable[[Passing], tuple[PyTree, PyTree]]
Act: TypeAlias = Callable[[Visit, Any], None]


class Engine:
    """Steps of one model over one store.

    Args:
        model: its three parts, such as a `Decoder`.
        conveyor: over a store of the layers, in order, and last the rest. A layer may be any bundle
            that `model.block` computes.
        update: what becomes of gradients.
        parts: micro-batches that a batch is cut into.
        clip: of gradients.
        kept_inputs: layers (the last ones) whose inputs stay on the device; None for all.
        order: of the visits, see `visit_order`.
        operands: what of a bundle is differentiated, and what else there is of it; `join` makes
            the weights of the two.
    """

    def __init__(
        self,
        model: Stages,
        conveyor: Conveyor[HostStore],
        update: Update,
        *,
        parts: int = 1,
        clip: Clip = Clip(),  # noqa: B008
        kept_inputs: int | None = None,
        order: VisitOrder = "layer-major",
        join: Join = all_weights,
        operands: Operands = lambda passing: (passing.arrays["weights"], None),
    ):
        self.conveyor, self.update, self.parts = conveyor, update, parts
        self.clip = clip.checked()
        self.layers = conveyor.store.bundles - 1
        self.programs = StepPrograms(model, parts, join, conveyor.link.replicas)
        self.operands = operands
        self.devices = conveyor.link.replicas.count
        self.saving: Saving = model if isinstance(model, Saving) else SaveAll()
        if order == "checkpointed" and isinstance(model, Saving):
            raise InputError("the checkpointed schedule computes whole layers; take layer-major")
        self.visits = ORDERS[order](self.layers, parts)
        self.table: str | None = getattr(model, "table", None)
        self.sliced_head: str | None = getattr(model, "sliced_head", None)
        self.reads: Reads | None = None
        self.kept_inputs = self.layers if kept_inputs is None else kept_inputs

    def step(self, tokens: Array, norm: Array | None = None) -> tuple[Metrics, Array]:
        """One step on tokens (batch, time + 1): (metrics, norm for the next step).

        `norm` is that of the gradient of the step before, 0 before the first; only clipping by
        "previous" looks at it. Metrics are those of the model's `finish`, averaged, `loss`, NaN
        where a gradient was not finite, and `grad_norm`. Nothing has changed then if the loss was
        not finite, or with a global clip; else the layers above that gradient have, as they were
        updated before it was known.
        """
        return _Step(self, self._cut(tokens, self.parts), norm).run()

    def score(self, tokens: PyTree, rows: int) -> Metrics:
        """Metrics of the model on tokens (n, time + 1), a mean; at most `rows` rows at a time."""
        check_number("rows", rows, int, COUNT)
        count = rows_of(tokens)
        together = rows_together(count, rows, self.devices)
        piece = lambda start: jax.tree.map(lambda x: x[start : start + together], tokens)
        return _Forward(self, [piece(start) for start in range(0, count, together)]).metrics()

    def rest(self, batches: list[PyTree], fields: tuple[str, ...]) -> RestPassage:
        """The passage of the rest; `fields` where it stays on the device."""
        store, at = self.conveyor.store, self.layers
        if not self.rest_stays and self.reads is None:
            like = lambda bundle: jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), store.tree(bundle, "weights")
            )
            self.reads = self.programs.reads(like(at), [like(i) for i in range(at)], batches[0])
        return RestPassage(self.conveyor, batches, self.reads, self.table, self.sliced_head, fields)

    @property
    def rest_stays(self) -> bool:
        """Whether the rest is on the device all the time."""
        store, at = self.conveyor.store, self.layers
        return store.resident(at) or not jax.tree.leaves(store.tree(at, "weights"))

    def _cut(self, tokens: PyTree, parts: int) -> list[PyTree]:
        """Every parts-th row, as gradients are accumulated elsewhere."""
        count = rows_of(tokens)
        if count % parts:
            raise InputError(f"a batch of {count} sequences cannot be cut into {parts} equal parts")
        if count // parts % self.devices:
            raise InputError(
                f"a micro-batch of {count // parts} sequences cannot be divided over "
                f"{self.devices} devices; take a multiple of {self.devices}"
            )
        return [jax.tree.map(lambda x, i=i: x[i::parts], tokens) for i in range(parts)]


class _Forward:
    """The visits that lead to a loss."""

    def __init__(self, engine: Engine, parts: list[PyTree]):
        self.engine, self.programs = engine, engine.programs
        self.conveyor = engine.conveyor
        self.rest = engine.rest(parts, self.rest_fields)
        self.x: dict[int, PyTree] = {}
        self.stats: dict[int, dict[int, PyTree]] = {part: {} for part in range(len(parts))}
        self.losses: dict[int, tuple[Array, Metrics]] = {}
        self.visits = forward_only(engine.layers, len(parts))

    @property
    def rest_fields(self) -> tuple[str, ...]:
        """Of a rest that stays."""
        return WEIGHTS

    def metrics(self) -> Metrics:
        self.walk()
        return averaged([{**metrics, "loss": loss} for loss, metrics in self.losses.values()])

    def walk(self) -> None:
        """Every visit, with its bundle on the device."""
        acts = self.acts()
        try:
            stops = [
                Stop(v.layer, self.fields(v), v.ahead, self.after(v))
                for v in self.visits
                if v.layer >= 0
            ]
            bundles = self.conveyor.walk(stops)
            for visit, following in itertools.zip_longest(self.visits, self.visits[1:]):
                if following is not None and following.phase == "finish":
                    self.rest.head_soon()
                acts[visit.phase](visit, next(bundles) if visit.layer >= 0 else self.rest)
            bundles.close()
        finally:
            self.rest.leave()

    def acts(self) -> dict[Phase, Act]:
        """What is done in each phase of a visit."""
        return {"embed": self.embed, "forward": self.forward, "finish": self.finish}

    def fields(self, visit: Visit) -> tuple[str, ...]:
        """What must be on the device for a visit."""
        return WEIGHTS

    def after(self, visit: Visit) -> tuple[str, ...]:
        """What the host uses after a visit."""
        return ()

    def embed(self, visit: Visit, rest: RestPassage) -> None:
        table, tokens = rest.embedding()
        for part in visit.parts:
            self.x[part], token = self.programs.embed(*self.engine.operands(table), tokens[part])
            table.until(token)

    def forward(self, visit: Visit, layer: Passing) -> None:
        for part in visit.parts:
            x, stats, token = self.programs.forward(
                *self.engine.operands(layer), self.entering(visit, part), index(visit.layer)
            )
            self.x[part], self.stats[part][visit.layer] = x, stats
            layer.until(token)

    def entering(self, visit: Visit, part: int) -> PyTree:
        return self.x[part]

    def finish(self, visit: Visit, rest: RestPassage) -> None:
        head = rest.head()
        for part in visit.parts:
            self.losses[part] = self.programs.score(
                *self.engine.operands(head), self.x.pop(part), self.listed(part), rest.tokens[part]
            )
            head.until(self.losses[part][0])

    def listed(self, part: int) -> list[PyTree]:
        return [self.stats[part][layer] for layer in range(self.engine.layers)]


class _Step(_Forward):
    """And those that lead back, with updates on the way."""

    def __init__(self, engine: Engine, parts: list[PyTree], norm: Array | None):
        super().__init__(engine, parts)
        self.visits = engine.visits
        self.norm = jnp.zeros((), jnp.float32) if norm is None else norm
        first_kept = engine.layers - engine.kept_inputs
        stays = lambda layer: layer >= first_kept
        self.saved = SavedInputs(self.conveyor.link, len(parts), stays, engine.saving)
        self.dx: dict[int, PyTree] = {}
        self.d_stats: dict[int, PyTree] = {}
        self.head_grads: PyTree = None  # of weights that the embedding does not read
        self.rest_grads: PyTree = None  # of the others
        self.rest_gradient = RestGradient(self.conveyor.link, self.narrowed)
        self.rest_update: tuple[Held, Gradient] | None = None
        self.grads: PyTree = None  # of the layer at hand
        self.squares: list[Array] = []
        self.held: Held = {}
        self.good: Array | bool = True

    @property
    def rest_fields(self) -> tuple[str, ...]:
        return WEIGHTS if self.engine.clip.waits else self.engine.update.fields

    @property
    def apart(self) -> bool:
        """Whether gradients of the rest leave the device when they are whole, each for itself."""
        return self.engine.clip.waits or not self.engine.rest_stays

    @property
    def narrowed(self) -> bool:
        """Whether gradients go to the host in the types of the weights."""
        return self.engine.clip.waits or self.engine.update.on_host

    def run(self) -> tuple[Metrics, Array]:
        self.walk()
        if self.rest_update is not None:
            self.engine.update.apply_all(self.conveyor, *self.rest_update)
        norm = norm_of(self.squares)
        if self.engine.clip.waits:
            good = self.good = all_finite(self.good, norm)
            limit = np.float32(self.engine.clip.limit)
            common = Gradient(None, clip_factor(limit, norm), good)
            self.engine.update.apply_all(self.conveyor, self.held, common)
        of_parts = [{**metrics, "loss": loss} for loss, metrics in self.losses.values()]
        metrics = averaged(of_parts)
        metrics |= {"loss": jnp.where(self.good, metrics["loss"], jnp.nan), "grad_norm": norm}
        return metrics, jnp.where(self.good, norm, self.norm)

    def acts(self) -> dict[Phase, Act]:
        back: dict[Phase, Act] = {
            "backward": self.backward,
            "embed backward": self.embed_backward,
        }
        return super().acts() | back

    def fields(self, visit: Visit) -> tuple[str, ...]:
        changes = visit.phase == "backward" and not self.engine.clip.waits
        return self.engine.update.fields if changes else WEIGHTS

    def after(self, visit: Visit) -> tuple[str, ...]:
        changes = visit.phase == "backward" and not self.engine.clip.waits
        return ("weights", "state") if changes and self.engine.update.on_host else ()

    def entering(self, visit: Visit, part: int) -> PyTree:
        if self.saved.has(visit.layer, part):  # a replay
            return self.saved.get(visit.layer, part)
        x = self.x[part]
        if visit.keep:
            self.saved.keep(visit.layer, part, x)
        return x

    def finish(self, visit: Visit, rest: RestPassage) -> None:
        self.saved.prefetch(self.engine.layers - 1)
        head, sliced = rest.head(), rest.sliced
        program, name = self.programs.finish, ()
        if sliced is not None:
            program, name = self.programs.finish_apart, (sliced.name,)
        grads: PyTree = None
        made_of: list[PyTree] = []
        for part in visit.parts:
            loss, metrics, grads, self.dx[part], self.d_stats[part], token, *inputs = program(
                *self.engine.operands(head),
                self.x.pop(part),
                self.listed(part),
                rest.tokens[part],
                grads,
                *name,
            )
            self.losses[part] = loss, metrics
            made_of += inputs
            head.until(token)
        self.head_grads, self.rest_grads = grads
        self.good = all_finite(True, *(loss for loss, _ in self.losses.values()))
        if sliced is not None:
            self.head_slices(visit, rest, head, made_of)
        if self.apart:
            self.rest_gradient.take(self.head_grads, head)
            self.head_grads = None

    def head_slices(
        self, visit: Visit, rest: RestPassage, head: Passing, made_of: list[PyTree]
    ) -> None:
        """The gradient of the head, a slice of the vocabulary at a time with all micro-batches."""
        for number, rows in enumerate(rest.slices):
            grads: PyTree = None
            for part, inputs in zip(visit.parts, made_of, strict=True):
                grads, token = self.programs.head_slice(
                    head.arrays["weights"][rows.table],
                    rest.tokens[part],
                    inputs,
                    index(number),
                    grads,
                    rows.held,
                )
                head.until(token)
            self.rest_gradient.take({rows.table: grads}, head, rows, goes=False)

    def backward(self, visit: Visit, layer: Passing) -> None:
        at = visit.layer
        self.saved.prefetch(at - 1)
        for part in visit.parts:
            self.grads, self.dx[part], token = self.programs.backward(
                *self.engine.operands(layer),
                self.saved.pop(at, part),
                index(at),
                self.dx[part],
                self.d_stats[part][at],
                self.grads,
            )
            layer.until(token)
        grads, self.grads = self.grads, None
        self.settle(layer, grads, averaged([stats[at] for stats in self.stats.values()]))

    def embed_backward(self, visit: Visit, rest: RestPassage) -> None:
        for time in rest.times:
            table, tokens = rest.embedding(time)
            moving, still = self.engine.operands(table)
            grads = begun(self.rest_grads, moving)
            for part in visit.parts:
                grads, token = self.programs.embed_backward(
                    moving, still, tokens[part], self.dx[part], grads
                )
                table.until(token)
            if not self.apart:
                self.settle(table, merged(self.head_grads, grads), None)
                self.head_grads = None
                return
            self.rest_gradient.take(grads, table, rest.taken(time))
        self.dx.clear()
        self.rest_grads = None
        at = self.engine.layers
        squared, held = self.rest_gradient.square(), self.rest_gradient.whole()
        self.squares.append(squared)
        if self.engine.clip.waits:
            self.held[at] = held
        else:
            self.rest_update = {at: held}, self.judged(None, squared)

    def settle(self, passing: Passing, grads: PyTree, stats: PyTree) -> None:
        """The gradient of a bundle is whole: apply it, or hold it until the norm is known."""
        squared = square(grads)
        self.squares.append(squared)
        if self.engine.clip.waits:
            small = self.programs.narrow(grads, passing.arrays["weights"])
            self.held[passing.bundle] = self.conveyor.link.fetch((small, stats))
            return
        gradient = self.judged(grads, squared)._replace(stats=stats)
        self.engine.update.apply(self.conveyor, passing, gradient)

    def judged(self, grads: PyTree, squared: Array) -> Gradient:
        """A gradient with its factor, and whether all were finite so far."""
        clip = self.engine.clip
        good = self.good = all_finite(self.good, squared)
        scale = jnp.ones((), jnp.float32)
        if clip.limit is not None:
            norm = jnp.sqrt(squared) if clip.by == "layer" else self.norm
            scale = clip_factor(np.float32(clip.limit), norm)
        return Gradient(grads, scale, good)
