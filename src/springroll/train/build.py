"""What a run of `springroll train` is made of: text, model, learner, their memory, and the task."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from springroll.errors import InputError
from springroll.gguf import model_folder
from springroll.memory import available_bytes, uneven
from springroll.models.decoder import stages
from springroll.models.decoder_config import CONFIGS, DecoderConfig, named, structs
from springroll.models.hf.family import Config as ModelConfig
from springroll.models.hf.files import context_length, family_of, open_hf, read_config
from springroll.models.hf.load import read_params
from springroll.models.protocols import LanguageModel
from springroll.models.rwkv7.config import RWKV7_CONFIGS, RWKV7Config
from springroll.planner.devices import card_at_hand, named_card
from springroll.run.devices import devices_for
from springroll.run.task import Curve, Metrics, Task
from springroll.stream.batch_rows import rows_together
from springroll.stream.replicas import AXIS
from springroll.subspace.optimizers import OPTIMIZERS
from springroll.train.config import TrainConfig
from springroll.train.data import Data, Records, Text, batch_shape, format_of, packs
from springroll.train.divided import DividedStages
from springroll.train.learners import Layout, Learner
from springroll.train.lora import frozen_identity
from springroll.train.optimizers import learner_for
from springroll.train.pretrained import folder_of
from springroll.train.step_memory import StepMemory, refuse_too_big, too_big
from springroll.train.streamed import stream_learner
from springroll.trees import PyTree

BYTES = 256  # the vocabulary of models made anew
PRETRAINED = 25  # the default learning rate of a model made anew over that of a pretrained one
LOST_LIMIT = 10  # steps in a row whose loss is not finite, and the run stops
Change: TypeAlias = dict[str, bool | int | str]  # of a config


class Training(NamedTuple):
    """Everything a run is made of."""

    config: TrainConfig  # with the engine decided
    task: Task
    model: LanguageModel
    learner: Learner
    data: Data
    memory: StepMemory
    notes: list[str]  # what else to say of the devices

    @property
    def lines(self) -> Mapping[str, float]:
        """Bits per byte to beat."""
        return self.data.lines


class Placement(NamedTuple):
    """Where states and batches live: a batch is split over the devices of a mesh; a state is on
    every device, or with `fsdp` split over them too."""

    mesh: Mesh
    fsdp: bool = False

    @property
    def devices(self) -> list[Any]:
        """In the order of the mesh."""
        return list(self.mesh.devices.flat)

    @property
    def batch(self) -> NamedSharding:
        """Of tokens (sequences, T + 1)."""
        return NamedSharding(self.mesh, PartitionSpec(AXIS))

    def layout(self, state: PyTree) -> PyTree:
        """Of all arrays of a state."""
        return jax.tree.map(self.state, state)

    def state(self, leaf: Any) -> NamedSharding:
        """Of an array of a state: whole, or cut along the longest axis that divides evenly."""
        fitting = [n if n % self.mesh.size == 0 else 0 for n in leaf.shape]
        if not self.fsdp or not any(fitting):
            return NamedSharding(self.mesh, PartitionSpec())
        axis = fitting.index(max(fitting))
        return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, AXIS))


def resolved(config: TrainConfig) -> TrainConfig:
    """The config of a new run, with what its continuations must not decide anew.

    The schedule is fixed to the steps that the run begins with. The default learning rates are
    those of small models made anew; what a pretrained model knows, they would destroy. Streamed
    layers are placed by the speed of the card that the run begins on.

    Raises:
        InputError: rows are longer than what a pretrained model reads.
    """
    check_context(config)
    if config.schedule_steps is None and config.generations:
        config = dataclasses.replace(config, schedule_steps=config.generations)
    if config.lr is None and folder_of(config.model):
        rate = OPTIMIZERS[config.optimizer].learning_rate / PRETRAINED
        config = dataclasses.replace(config, lr=rate)
    if config.format is None:  # runs of versions without records learn the text of such files
        config = dataclasses.replace(config, format=format_of(config.data))
    if config.card is None and config.engine != "resident":
        card = card_at_hand()
        return config if card is None else dataclasses.replace(config, card=card.name)
    named_card(config.card or "H100")  # or it says which there are
    return config


def check_context(config: TrainConfig) -> None:
    """Raise InputError where rows are longer than what a pretrained model reads."""
    folder = folder_of(config.model)
    context = None if folder is None else context_length(model_folder(folder))
    if context is not None and config.sequence > context:
        raise InputError(
            f"sequence is {config.sequence:,}; {config.model} reads {context:,} tokens at most "
            "(max_position_embeddings of its config.json); lower --sequence, or raise it there"
        )


def build(config: TrainConfig) -> Training:
    """Load the data, make model and learner, see that a step fits, and join them to a task."""
    source = source_of(config)
    placement = place(config)
    config, model, learner, memory = engine(config, placement)
    if learner.load is not None:  # what is wrong with its numbers leaves no run behind
        learner.load(NamedSharding(placement.mesh, PartitionSpec()))
    data = source()
    task = training_task(config, model, learner, data, placement)
    notes = [note for note in (uneven(placement.devices), undivided(placement)) if note]
    return Training(config, task, model, learner, data, memory, notes)


def source_of(config: TrainConfig) -> Callable[[], Data]:
    """What gives the data. What is wrong with them is said before anything is compiled."""
    if config.format != "records":
        return Text(config).data
    data = Records(config, packs(config, model_config(config.model))).data()
    return lambda: data


def engine(
    config: TrainConfig, placement: Placement
) -> tuple[TrainConfig, LanguageModel, Learner, StepMemory]:
    """(config with the engine decided, model, what trains it, memory of a step).

    Raises:
        InputError: a step fits in no way; the nearest that does is named.
    """
    folder = folder_of(config.model)
    if folder is not None:
        open_hf(folder)  # what is wrong with its files is found before anything is allocated
    if config.engine == "stream":
        return streamed(config, placement)
    model, learner = make(config, placement)
    memory = memory_of(config, learner, placement)
    if config.engine == "auto" and not config.fsdp and too_big(memory, budget(config, placement)):
        # Where streaming does not fit either, the nearest change that does is the better answer.
        with contextlib.suppress(InputError):
            return streamed(config, placement)
    refuse_too_big(memory, budget(config, placement), alternatives(config, placement))
    return dataclasses.replace(config, engine="resident"), model, learner, memory


def streamed(
    config: TrainConfig, placement: Placement
) -> tuple[TrainConfig, LanguageModel, Learner, StepMemory]:
    """The same with layers that pass through the device."""
    config = dataclasses.replace(config, engine="stream")
    model = language_model(config)
    return config, model, *stream_learner(config, model, placement.devices)


def make(config: TrainConfig, placement: Placement | None = None) -> tuple[LanguageModel, Learner]:
    """The model of a config and what trains it; nothing is allocated."""
    model = language_model(config)
    folder = folder_of(config.model)
    init = model.init if folder is None else lambda key: pretrained(folder, model.config)
    if placement is None or not placement.fsdp:
        return model, learner_for(config, model, init)
    parts, layout = dividing(model, placement), placement.layout
    build = lambda init: learner_for(config, model, init, parts.loss, layout, parts)
    return model, build(init) if folder is None else reading(folder, model, build, layout)


def dividing(model: LanguageModel, placement: Placement) -> DividedStages:
    """The model on weights that are divided so."""
    return DividedStages(stages(model), placement.state, placement.batch)


def reading(
    folder: Path,
    model: LanguageModel,
    build: Callable[[Callable[[PyTree], PyTree]], Learner],
    layout: Layout,
) -> Learner:
    """What trains the weights in a folder, which are divided as they are read: those of a callback
    would first be whole on every device."""
    learner = build(lambda key: pretrained(folder, model.config))
    of_weights = build(lambda weights: weights).init

    def start(key: Array) -> PyTree:
        if isinstance(key, Tracer):  # for its shapes
            return learner.init(key)
        weights = read_params(folder, model.config, np.float32)
        return of_weights(jax.device_put(weights, layout(weights)))

    return learner._replace(init=start)


def language_model(config: TrainConfig) -> LanguageModel:
    """The model of a config, of whatever kind."""
    shape = model_config(config.model)
    return family_of(shape).model(shape, remat=config.remat)


def model_config(name: str) -> DecoderConfig | RWKV7Config:
    """The configuration of that name with the 256 bytes for a vocabulary, or that of a folder."""
    folder = folder_of(name)
    if folder is not None or os.path.isdir(name):  # which says what is wrong with the folder
        return read_config(folder or name)
    if os.sep in name:
        raise InputError(f"model is {name}; there is no folder of that name")
    try:
        return dataclasses.replace(named(name, CONFIGS | RWKV7_CONFIGS), vocab=BYTES)
    except InputError as error:
        raise InputError(f"no folder {name} is here, and {error}") from None


def pretrained(folder: str | Path, config: ModelConfig) -> PyTree:
    """The weights in a folder, in float32; read when the program runs, not when it is traced."""
    like = structs(family_of(config).shapes(config))
    return jax.pure_callback(lambda: read_params(folder, config, np.float32), like)


def place(config: TrainConfig) -> Placement:
    """The devices of a run: as asked; by default all accelerators, or one CPU."""
    devices = devices_for(config.devices)
    count = len(devices)
    if config.batch % count:
        raise InputError(f"batch is {config.batch}; it must divide evenly over {count} devices")
    return Placement(Mesh(np.array(devices), (AXIS,)), config.fsdp)


def memory_of(config: TrainConfig, learner: Learner, placement: Placement) -> StepMemory:
    """The memory that a step needs."""
    put = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placement.batch)
    return learner.memory(jax.tree.map(put, batch_shape(config)))


def undivided(placement: Placement) -> str | None:
    """A line where a state is to be divided, and there is nobody to share it with."""
    alone = placement.fsdp and placement.mesh.size == 1
    return "fsdp divides nothing: there is one device (--devices)" if alone else None


def budget(config: TrainConfig, placement: Placement) -> int | None:
    """Bytes a step may need on each device."""
    given = config.device_bytes
    return available_bytes(placement.devices) if given is None else given


def alternatives(config: TrainConfig, placement: Placement) -> Iterator[tuple[str, int]]:
    """Options that need less memory, and the peak of each, least change first; compiled one by
    one, as asked for."""
    devices = placement.mesh.size
    least: Change = {"remat": True, "batch": devices}
    divided: Change = {"fsdp": devices > 1}
    layerwise = divided | {"remat": True, "optimizer": "apollo-mini", "layerwise": True}
    changes: list[Change] = [
        {"remat": True},
        *([divided, divided | {"remat": True}] if config.optimizer != "lowgrad" else []),
        least,
        {"remat": True, "optimizer": "lowgrad", "fsdp": False},
        layerwise | {"accumulate": 1},
        layerwise | {"accumulate": 1, "batch": devices},
    ]
    if config.optimizer == "lora":
        coded: list[Change] = [{"base_bits": 8}, {"base_bits": 4}, least | {"base_bits": 4}]
        changes = [{"remat": True}, least, *coded]
    seen = [config]
    for change in changes:
        other = dataclasses.replace(config, **change)
        if other not in seen:
            seen.append(other)
            with contextlib.suppress(InputError):  # of a model that cannot be divided
                learner = make(other, placement._replace(fsdp=other.fsdp))[1]
                yield flags(change, config), memory_of(other, learner, placement).peak


def flags(change: Change, config: TrainConfig) -> str:
    """The change of a config as options of a command line."""
    given = {name: value for name, value in change.items() if getattr(config, name) != value}
    spelt = lambda name: "--" + name.replace("_", "-")
    switches = {True: spelt, False: lambda name: f"--no-{name}"}
    return " ".join(
        switches[value](name) if isinstance(value, bool) else f"{spelt(name)} {value}"
        for name, value in given.items()
    )


def training_task(
    config: TrainConfig, model: LanguageModel, learner: Learner, data: Data, placement: Placement
) -> Task:
    """The loop's view: one member, whose carry is the whole training state."""

    def init() -> tuple[None, PyTree]:
        put = lambda x: jax.device_put(x, placement.state(x)) if hasattr(x, "devices") else x
        return None, jax.tree.map(put, learner.init(jax.random.key(config.seed)))

    def template() -> tuple[None, PyTree]:
        shapes = jax.eval_shape(learner.init, jax.random.key(config.seed))
        at = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placement.state(x))
        return None, jax.tree.map(at, shapes)

    def evaluate(
        state: None, members: None, carry: PyTree, rows: PyTree
    ) -> tuple[Array, PyTree, Metrics]:
        # The stream cuts a batch on the host before it sends it.
        tokens = rows if config.engine == "stream" else jax.device_put(rows, placement.batch)
        carry, figures = learner.step(carry, tokens)
        told = figures["loss"] * per_nat
        return -figures["loss"][None], carry, {**figures, f"train_{measure.name}": told}

    measure = data.measure
    per_nat = np.float32(measure.per_nat)
    whole = jax.jit(lambda params: mean_nats(model, params, data.sample, config.batch, placement))

    def validate(_: None, carry: PyTree) -> Metrics:
        if learner.score is None:
            nats = whole(learner.params(carry))
        else:
            nats = learner.score(carry, data.sample)
        return {f"valid_{measure.name}": nats * per_nat}

    return Task(
        init=init,
        # Streamed layers have memory of their own, which a checkpoint is read into.
        template=None if config.engine == "stream" else template,
        batch=data.batch,
        ask=lambda state: None,
        evaluate=evaluate,
        tell=lambda state, members, fitness: (None, {}),
        validate=validate,
        pop_size=1,
        tokens=config.accumulate * config.batch * config.sequence,
        iteration="step",
        seed=config.seed,
        lost_limit=LOST_LIMIT,
        identity={**data.identity, **frozen_identity(config)},
        summary=data.lines,
        curve=Curve(
            train=f"train_{measure.name}",
            valid=f"valid_{measure.name}",
            label=measure.label,
            short=measure.short,
            lines={name.removesuffix("_bits_per_byte"): bits for name, bits in data.lines.items()},
            title=f"{config.model}, {model.config.parameters:,} parameters, {config.optimizer}",
        ),
    )


def mean_nats(
    model: LanguageModel,
    params: PyTree,
    sample: PyTree,
    rows: int,
    placement: Placement | None = None,
) -> Array:
    """Mean nats per token of `sample`, tokens (n, T + 1) or `Packed` rows, at most `rows` rows at a
    time, which the devices of a placement share where they divide evenly."""
    count = jax.tree.leaves(sample)[0].shape[0]
    devices = placement.mesh.size if placement else 1
    together = rows_together(count, rows, devices)
    pieces = jax.tree.map(lambda x: x.reshape(-1, together, *x.shape[1:]), sample)
    loss = model.loss
    if placement and devices > 1 and together % devices == 0:
        whole = dividing(model, placement).loss if placement.fsdp else model.loss
        split = lambda piece: lax.with_sharding_constraint(piece, placement.batch)
        loss = lambda params, piece: whole(params, split(piece))
    return jnp.mean(lax.map(lambda piece: loss(params, piece)[1]["nats"], pieces))
