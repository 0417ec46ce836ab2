"""`springroll train --engine stream`: the learner of a model that passes through the device."""

import dataclasses
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import Array

from springroll.errors import InputError
from springroll.memory import available_bytes, check_within_device, host_memory, spelt
from springroll.models.decoder import Decoder, stages
from springroll.models.decoder_config import shapes, structs
from springroll.models.decoder_weights import drawn_leaves
from springroll.models.expert_stages import expert_stages
from springroll.models.hf.files import open_hf
from springroll.models.hf.load import read_bundles
from springroll.models.moe import balance
from springroll.models.protocols import LanguageModel, Metrics
from springroll.planner.devices import Rates, assumed_rates, named_card
from springroll.planner.footprint import (
    Placement,
    StepSpec,
    device_bytes,
    disk_bytes,
    disk_window,
    host_bytes,
    together,
    total,
)
from springroll.planner.methods import MethodBytes, Mode, method_bytes
from springroll.planner.placement import Budgets, choose, least_device, least_host
from springroll.planner.working_set import expert_working_set, working_set
from springroll.stream.bundles import experts_apart, whole_layers
from springroll.stream.clipping import Clip
from springroll.stream.device_update import DeviceUpdate
from springroll.stream.disk import Disk, free_on_disk
from springroll.stream.fill_store import Tensors, bundled_leaves, stacked_leaves
from springroll.stream.host_adamw import AdamW, kernels
from springroll.stream.host_update import HostUpdate
from springroll.stream.link import Link
from springroll.stream.streamed import Streamed
from springroll.stream.streamed_low_rank import StreamedLowRank
from springroll.stream.update import PlacedUpdate, Update
from springroll.subspace.optimizers import OPTIMIZERS, block_matrices
from springroll.train.config import TrainConfig
from springroll.train.learners import Learner
from springroll.train.optimizers import (
    balanced,
    layer_optimizers,
    learning_rate,
    low_rank_trainer,
)
from springroll.train.pretrained import folder_of
from springroll.train.stream_memory import StreamMemory
from springroll.trees import Params, PyTree


def stream_learner(
    config: TrainConfig, model: LanguageModel, devices: Sequence[Any]
) -> tuple[Learner, StreamMemory]:
    """What trains `model` as configured on these devices; only shapes are allocated.

    Raises:
        InputError: what cannot be streamed, or fits in no way; before anything is allocated.
    """
    decoder = stages(model)
    spec, budgets = step_spec(config, decoder, len(devices)), budgets_of(config, devices)
    place = placed(config, spec, budgets)
    make = low_rank if config.optimizer == "lowgrad" else streamed
    link = Link(devices)
    disk = disk_of(config, spec, place)  # a folder that takes no file leaves no run behind
    run = StreamedRun(
        config,
        decoder,
        lambda: make(config, decoder, place, waiting(spec, place, budgets), link, disk),
    )
    memory = StreamMemory(
        device_bytes(spec, place), host_bytes(spec, place), disk_bytes(spec, place), len(devices)
    )
    learner = Learner(
        init=run.init,
        step=run.step,
        memory=lambda batch: memory,
        params=lambda state: state.params,
        score=run.score,
    )
    return learner, memory


class StreamedRun:
    """The functions of a `Learner` over a trainer that is allocated when the run begins."""

    def __init__(
        self,
        config: TrainConfig,
        model: Decoder,
        allocate: Callable[[], Streamed | StreamedLowRank],
    ):
        self._config, self._model, self._allocate = config, model, allocate
        self._trainer: Streamed | StreamedLowRank | None = None

    @property
    def trainer(self) -> Streamed | StreamedLowRank:
        assert self._trainer is not None, "init comes first"
        return self._trainer

    def init(self, key: Array) -> PyTree:
        """Allocate the store and fill it with the first weights: the state of step 0."""
        self._trainer = self._allocate()
        return self._trainer.fill(tensors(self._config, self._model, key))

    def step(self, state: PyTree, tokens: PyTree) -> tuple[PyTree, Metrics]:
        """One step on tokens (sequences, T + 1) or packed rows."""
        state, metrics = self.trainer.step(state, tokens)
        if self._config.optimizer == "lowgrad":  # the others have done so, layer by layer
            state = dataclasses.replace(state, base=balanced(state.base, metrics))
        return state, metrics

    def score(self, state: PyTree, rows: PyTree) -> Array:
        """Mean nats per token of rows (n, T + 1), or per answer token of packed rows."""
        return self.trainer.score(state, rows, self._config.batch)["nats"]


def streamed(
    config: TrainConfig,
    model: Decoder,
    place: Placement,
    waiting: int,
    link: Link | None = None,
    disk: Disk | None = None,
) -> Streamed:
    """The trainer, with its store allocated; `waiting`: see `HostUpdate`."""
    params, few = float32_shapes(model), config.experts_per_bundle
    parts = expert_stages(model, few) if few else stages(model)
    bundles = experts_apart(params, few) if few else whole_layers(params)
    last, of_layer = len(bundles) - 1, (len(bundles) - 1) // model.config.layers
    stay = range(last - place.layers * of_layer, last)  # needed first again
    rest = [last] if place.mode == "resident" else []
    return Streamed(
        parts,
        params,
        update_for(config, model, place.mode, waiting),
        bundles=bundles,
        narrow=config.dtype == "bfloat16",
        link=link,
        depth=config.depth,
        on_device=[*stay, *rest],
        disk=disk,
        on_disk=on_disk(place, model.config.layers, of_layer),
        parts=config.accumulate,
        clip=Clip(config.clip, config.clip_by),
        kept_inputs=place.inputs * of_layer,
    )


def low_rank(
    config: TrainConfig,
    model: Decoder,
    place: Placement,
    waiting: int,
    link: Link | None = None,
    disk: Disk | None = None,
) -> StreamedLowRank:
    """The same for gradients in subspaces."""
    dtype = jnp.dtype(config.dtype)
    kept = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype), float32_shapes(model))
    cast = lambda key: jax.tree.map(lambda x: x.astype(dtype), model.init(key))
    return StreamedLowRank(
        stages(model),
        low_rank_trainer(dataclasses.replace(config, accumulate=1), model, cast, model.loss),
        kept,
        link=link,
        depth=config.depth,
        on_device=range(model.config.layers - place.layers, model.config.layers),
        disk=disk,
        on_disk=on_disk(place, model.config.layers),
        parts=config.accumulate,
        kept_inputs=place.inputs,
    )


def disk_of(config: TrainConfig, spec: StepSpec, place: Placement) -> Disk | None:
    """The file of the layers that live on a disk, if any do."""
    if not place.disk or config.disk is None:
        return None
    return Disk(config.disk, disk_window(spec, place))


def on_disk(place: Placement, layers: int, of_layer: int = 1) -> list[int]:
    """The bundles that live on a disk: layers evenly among those that stream, so that it is read
    while others are computed."""
    streamed = layers - place.layers
    chosen = [i * streamed // place.disk for i in range(place.disk)]
    return [layer * of_layer + bundle for layer in chosen for bundle in range(of_layer)]


def update_for(config: TrainConfig, model: Decoder, mode: Mode, waiting: int) -> Update:
    """Where weights change: on the device, or on the host but for layers that do not leave it."""
    optimizer, rest = layer_optimizers(config, model)
    on_device = DeviceUpdate(optimizer, rest, adjust=balanced_layer)
    if mode != "host":
        return on_device
    rate = learning_rate(config)

    def at(step: int) -> Array:
        with jax.numpy_dtype_promotion("standard"):  # optax need not be strict
            return cast(Array, rate(jnp.asarray(step, jnp.int32)))

    adamw = AdamW(
        lr=at,
        b1=config.b1,
        b2=config.b2,
        weight_decay=config.weight_decay,
    )
    host_update = HostUpdate(
        adamw, optimizer, rest, decays=block_matrices, waiting=waiting, adjust=balanced_layer
    )
    return PlacedUpdate(on_device, host_update)


def balanced_layer(layer: Params, stats: PyTree) -> Params:
    """A layer whose router's selection bias is moved towards an even load, if it has one."""
    bias = layer["mlp"].get("e_score_correction_bias")
    if bias is None:
        return layer
    moved = balance(bias, stats["load"])
    return layer | {"mlp": layer["mlp"] | {"e_score_correction_bias": moved}}


def tensors(config: TrainConfig, model: Decoder, key: Array) -> Tensors:
    """The first weights, one tensor at a time."""
    folder = folder_of(config.model)
    if folder is not None:
        return bundled_leaves(read_bundles(open_hf(folder, model.config)))
    return stacked_leaves(drawn_leaves(model.config, key))


def float32_shapes(model: Decoder) -> Params:
    """Of the parameters."""
    return structs(shapes(model.config))


def on_host(config: TrainConfig) -> bool:
    """Whether the processor can do the updates: exact AdamW, and numba is there unless asked."""
    exact = config.dtype == "float32" or config.rounding == "split"
    updates = OPTIMIZERS[config.optimizer].streamed_updates(config.state_bits, exact)
    return "host" in updates and (config.update == "host" or find_spec("numba") is not None)


def step_spec(config: TrainConfig, model: Decoder, devices: int = 1) -> StepSpec:
    """The step, counted; `devices` divide the batch."""
    if config.layerwise:
        raise InputError("stream updates layer by layer anyway; leave out --layerwise")
    if config.update == "host" and not on_host(config):
        raise InputError(
            "updates on the host are exact AdamW in float32 or with --rounding split; "
            f"leave out --update host for {config.optimizer} in {config.state_bits} bits"
        )
    if config.update == "host":
        kernels()  # or it says what to install
    few = config.experts_per_bundle
    if few and config.optimizer == "lowgrad":
        raise InputError("lowgrad streams whole layers; leave out --experts-per-bundle")
    if few:
        expert_stages(model, few)  # or it says why not
    modes: dict[str, tuple[Mode, ...]] = {"host": ("host",), "device": ("device",)}
    both: tuple[Mode, ...] = ("host", "device") if on_host(config) else ("device",)
    # The experts of a mixture are computed for all tokens on every device.
    rows = config.batch if model.config.experts else config.batch // devices
    size = model.config, rows, config.sequence, config.dtype
    working = expert_working_set(*size, few) if few else working_set(*size)
    return StepSpec(
        config=model.config,
        method=method_of(config, model, modes.get(config.update, both)),
        tokens=config.accumulate * config.batch * config.sequence,
        rows=config.batch,
        sequence=config.sequence,
        working=working,
        depth=config.depth,
        clip="none" if config.clip is None else config.clip_by,
        experts_per_bundle=few,
        devices=devices,
    )


def method_of(config: TrainConfig, model: Decoder, modes: tuple[Mode, ...]) -> MethodBytes:
    """Bytes of weights and of the optimizer's state."""
    sizes = method_bytes(
        model.config,
        config.optimizer,
        dtype=config.dtype,
        state_bits=config.state_bits,
        basis_bits=config.basis_bits,
        rank=None if config.rank is None else min(config.rank, model.config.hidden),
        rounding=config.rounding,
    )
    return sizes if config.optimizer == "lowgrad" else dataclasses.replace(sizes, updates=modes)


def budgets_of(config: TrainConfig, devices: Sequence[Any] = ()) -> Budgets:
    """Bytes as given, or what there is; of several devices on the smallest."""
    one_memory = jax.devices()[0].platform == "cpu"
    free = host_memory() or 1 << 62
    device = available_bytes(devices) if config.device_bytes is None else config.device_bytes
    if config.device_bytes is not None:
        check_within_device(config.device_bytes, "--device-memory")
    host = free if config.host_bytes is None else config.host_bytes
    disk = 0 if config.disk is None else max(1, free_on_disk(config.disk))
    return Budgets(device or 1 << 62, host, free if one_memory else None, disk)


def waiting(spec: StepSpec, place: Placement, budgets: Budgets) -> int:
    """Bundles whose gradients may wait on the host: those that were counted, and as many as what is
    left of the budget holds."""
    left = budgets.host - total(host_bytes(spec, place))
    if budgets.together is not None:
        left = min(left, budgets.together - together(spec, place))
    return 2 + max(0, left) // (spec.bundle * spec.method.weights)


def placed(config: TrainConfig, spec: StepSpec, budgets: Budgets) -> Placement:
    """What stays on the device and what streams, within the budgets.

    Raises:
        InputError: nothing fits; what is missing is named.
    """
    choice = choose(spec, rates(config), budgets)
    if choice is not None:
        return choice.place
    least = least_device(spec)
    if least > budgets.device:
        raise InputError(
            f"streaming needs {spelt(least)} on the device, {spelt(budgets.device)} are "
            f"available; lower --depth (now {config.depth}), --batch or --sequence"
            + (f", or pass --experts-per-bundle {smaller}" if (smaller := fewer(spec)) else "")
        )
    ways = ["fewer --state-bits", "--rounding stochastic"]
    if config.clip is not None and config.clip_by == "global":
        ways.append("--clip-by previous (gradients then need not wait on the host)")
    if config.disk is None:
        ways.append("a folder for layers (--disk)")
    remedy = f"take {', '.join(ways)} or a smaller --model"
    needed = least_host(spec, budgets)
    if config.disk is not None and needed <= budgets.host:
        raise InputError(
            f"{spelt(budgets.disk)} are free on the disk of {config.disk}, too little for the "
            f"layers that do not fit into {spelt(budgets.host)} of host memory; make room there, "
            f"or {remedy}"
        )
    raise InputError(
        f"streaming needs {spelt(needed)} of host memory, {spelt(budgets.host)} are available; "
        f"{remedy}"
    )


def fewer(spec: StepSpec) -> int | None:
    """Experts of a bundle that is smaller than the present ones, if there can be one."""
    experts = spec.config.experts
    if not spec.method.layer_thin and not spec.experts_per_bundle and experts > 1:
        return max(n for n in range(1, experts) if experts % n == 0)
    return None


def rates(config: TrainConfig) -> Rates:
    """To compare placements with: those that `springroll plan` assumes of the card. A run without
    one, begun on a CPU or by an earlier version, is placed for a card with a fast link."""
    if config.card is None:
        return assumed_rates(named_card("H100"))
    return assumed_rates(named_card(config.card), dtype=config.dtype)
