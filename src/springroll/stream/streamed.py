"""A trainer for models that do not fit on the device."""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import jax.numpy as jnp
from jax import Array

from springroll.errors import InputError
from springroll.models.protocols import Metrics, Stages, check_arguments, checked_stages
from springroll.ranges import COUNT, NOT_NEGATIVE
from springroll.stream.bundles import Bundles, whole_layers
from springroll.stream.clipping import Clip, common_clip
from springroll.stream.conveyor import Conveyor
from springroll.stream.disk import Disk
from springroll.stream.engine import Engine
from springroll.stream.fill_store import Tensors, blank, fill
from springroll.stream.link import Link
from springroll.stream.store import HostStore
from springroll.stream.stored_leaves import stored_params, stored_states
from springroll.stream.update import Update
from springroll.stream.visit_order import VisitOrder
from springroll.subspace.layerwise import LayerwiseState
from springroll.trees import PyTree
from springroll.typed_call import typed_call


class StreamedState(NamedTuple):
    """All there is, in the order of a checkpoint of `sr.layerwise`.

    params and optimizer are (`StoredLeaf`): a step changes them in place.
    """

    params: PyTree
    optimizer: LayerwiseState
    steps: Array  # () int32, those that changed nothing included


class Streamed:
    """A model in host memory whose training steps stream it through the device.

        trainer = Streamed(model, shapes, DeviceUpdate(optax.adam(1e-3)))
        state = trainer.fill(stacked_leaves(leaves))
        state, metrics = trainer.step(state, tokens)

    The result is that of one gradient of the whole loss; the optimizer sees a layer at a time.

    Args:
        model: its three parts.
        shapes: its float32 parameters as `jax.ShapeDtypeStruct`s, blocks stacked in "layers".
        update: where and how weights change.
        bundles: what passes at a time; by default layers. Those of `bundles.experts_apart` go with
            `models.expert_stages`.
        narrow: keep and compute with bfloat16 halves; `update` then knows the other halves.
        link: to the device; `Link(devices)` trains on several, see `springroll.stream.replicas`.
        depth: bundles on the device at a time.
        on_device: bundles that stay there.
        disk, on_disk: where bundles live that host memory does not hold, and which those are.
        clip: of gradients; an `update` whose optimizer begins with `optax.clip_by_global_norm`
            brings its own.
        parts, kept_inputs, order: see `Engine`.

    Raises:
        InputError: the model lacks a part, or blocks stacked in layers; a clip that cannot be, or
            an argument of another type.

    Source: arXiv 2604.05091 (weights and states on the host, stateless programs of a layer).
    """

    @typed_call
    def __init__(
        self,
        model: Stages,
        shapes: PyTree,
        update: Update,
        *,
        bundles: Bundles | None = None,
        narrow: bool = False,
        link: Link | None = None,
        depth: Annotated[int, COUNT] = 3,
        on_device: Sequence[int] = (),
        disk: Disk | None = None,
        on_disk: Sequence[int] = (),
        parts: Annotated[int, COUNT] = 1,
        clip: Clip = Clip(),  # noqa: B008
        kept_inputs: Annotated[int | None, NOT_NEGATIVE] = None,
        order: VisitOrder = "layer-major",
    ):
        checked_stages(model, shapes)
        check_arguments(model)
        if model.stack != "layers":
            raise InputError(f"the layers are in {model.stack!r}; a trainer streams 'layers'")
        clip = common_clip(clip, getattr(update, "clip_norm", None))
        self.link = link or Link()
        self.shapes = shapes
        self.bundles = whole_layers(shapes) if bundles is None else bundles
        for name, named in (("on_device", on_device), ("on_disk", on_disk)):
            outside = sorted(i for i in named if not 0 <= i < len(self.bundles))
            if outside:
                raise InputError(
                    f"{name} names bundle {outside[0]}; there are 0 to {len(self.bundles) - 1}"
                )
        self.store = HostStore(self.link, on_device, disk, on_disk)
        blank(self.store, update, self.bundles, narrow)
        conveyor = Conveyor(self.store, self.link, depth)
        self.engine = Engine(
            model, conveyor, update, parts=parts, clip=clip, kept_inputs=kept_inputs, order=order
        )

    def fill(self, tensors: Tensors) -> StreamedState:
        """The state of step 0, with these weights."""
        fill(self.store, tensors, self.shapes, self.bundles)
        return self.state()

    def state(self) -> StreamedState:
        """What the store holds, before the first step."""
        params = stored_params(self.store, self.bundles, self.shapes)
        layers, rest = stored_states(self.store, self.bundles)
        optimizer = LayerwiseState(layers, rest, jnp.zeros((), jnp.float32))
        return StreamedState(params, optimizer, jnp.zeros((), jnp.int32))

    def step(self, state: StreamedState, tokens: PyTree) -> tuple[StreamedState, Metrics]:
        """One step on tokens (batch, time + 1); returns while the last updates still run."""
        metrics, norm = self.engine.step(tokens, state.optimizer.norm)
        optimizer = state.optimizer._replace(norm=norm)
        return state._replace(optimizer=optimizer, steps=state.steps + 1), metrics

    def score(self, state: StreamedState, tokens: PyTree, rows: int) -> Metrics:
        """Metrics of the model on tokens (n, time + 1), at most `rows` rows at a time."""
        return self.engine.score(tokens, rows)
