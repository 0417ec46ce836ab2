"""Bytes of a streamed step on the device, on the host and on a disk, by kind; exact arithmetic over
shapes."""

import functools
from dataclasses import dataclass
from typing import Literal

from springroll.models.decoder_config import DecoderConfig, shapes, size
from springroll.planner.methods import MethodBytes, Mode, layer_numbers, rest_numbers
from springroll.planner.working_set import WorkingSet, head_slice
from springroll.stream.rest_gradient import GOING
from springroll.stream.table_rows import by_rows, rows_at_once

Clip = Literal["none", "global", "previous", "layer"]
Bytes = dict[str, int]  # by kind
WINDOW = 4  # bundles of a disk in host memory: two read ahead, one in use, one to be written


@dataclass(frozen=True)
class StepSpec:
    """What a step has to do.

    tokens: of a step, in micro-batches of `rows` sequences of `sequence` tokens; for evolve those
    of all members of a generation. depth: bundles on the device at a time, which are layers, or
    with `experts_per_bundle` attention or so many experts. devices: that every micro-batch is
    divided over; `working` is that of the share of one. platform: that the programs are traced for,
    None for this process's.
    """

    config: DecoderConfig
    method: MethodBytes
    tokens: int
    rows: int
    sequence: int
    working: WorkingSet
    depth: int = 3
    clip: Clip = "previous"
    experts_per_bundle: int | None = None
    devices: int = 1
    platform: str | None = None

    @functools.cached_property
    def parts(self) -> int:
        """Micro-batches of a step."""
        return self.tokens // (self.rows * self.sequence)

    @property
    def at_once(self) -> int:
        """Devices that computation is divided over; the experts of a mixture are computed for all
        tokens on every device."""
        return 1 if self.config.experts else self.devices

    @functools.cached_property
    def layer(self) -> int:
        """Parameters of a layer."""
        return layer_numbers(self.config)

    @functools.cached_property
    def bundles(self) -> int:
        """That a layer passes as."""
        return 1 + self.config.experts // self.experts_per_bundle if self.experts_per_bundle else 1

    @functools.cached_property
    def bundle(self) -> int:
        """Parameters of the largest of them."""
        if not self.experts_per_bundle:
            return self.layer
        experts = size(shapes(self.config)["layers"]["mlp"]["experts"]) // self.config.layers
        few = experts // self.config.experts * self.experts_per_bundle
        return max(few, self.layer - experts)

    @functools.cached_property
    def rest(self) -> int:
        """Parameters of no layer."""
        return rest_numbers(self.config)

    @functools.cached_property
    def embedding(self) -> int:
        """Parameters that the embedding reads."""
        return self.config.vocab * self.config.hidden

    @functools.cached_property
    def read(self) -> tuple[int, int]:
        """Numbers of the embedding that are read of a table that passes: all that a step reads, and
        what comes at a time for its gradient."""
        if self.config.tied or not by_rows((self.config.vocab, self.config.hidden)):
            return self.embedding, self.embedding
        times, rows = rows_at_once(self.tokens, self.config.vocab, self.config.hidden)
        return times * rows * self.config.hidden, rows * self.config.hidden

    @functools.cached_property
    def head_slice(self) -> int:
        """Numbers of the head whose gradient is there at a time, where it passes."""
        return head_slice(self.config, self.rows * self.sequence, self.platform)

    @property
    def updated_alone(self) -> int:
        """Parameters of embedding and head that are updated together on the device."""
        if not by_rows((self.config.vocab, self.config.hidden)):
            return self.rest
        return max(self.embedding, self.rest - self.embedding)

    @property
    def head(self) -> int:
        """Parameters that the head reads."""
        return self.rest - (0 if self.config.tied else self.embedding)

    @functools.cached_property
    def layer_input(self) -> int:
        """Bytes of one layer's inputs on each device, of all micro-batches where layers stream, one
        after the other; those of its experts too, where they are bundles: as wide, and a float32
        weight per expert."""
        one = self.config.hidden * self.method.weights
        if self.experts_per_bundle:
            one = 2 * one + 4 * self.config.experts
        tokens = self.tokens if self.method.updates else self.rows * self.sequence
        return tokens // self.devices * one

    @functools.cached_property
    def gradient(self) -> int:
        """Bytes per number of a gradient: summed in float32, one micro-batch as computed."""
        return 4 if self.parts > 1 else self.method.weights


@dataclass(frozen=True)
class Placement:
    """What stays on the device.

    mode: where streamed layers are updated; "resident" when there are none.
    layers: how many layers stay, with their state. inputs: the saved inputs of how many layers do.
    disk: how many of the others live on a disk.
    """

    mode: Mode
    layers: int
    inputs: int
    disk: int = 0


def passing(spec: StepSpec, mode: Mode) -> int:
    """Bytes of a layer on its way to its update: weights, and state where that is on the device."""
    weights = spec.layer * spec.method.weights
    if mode in ("device", "resident"):
        return weights + spec.layer * spec.method.low + spec.method.layer_state
    return weights


def largest(spec: StepSpec, layer: int) -> int:
    """Of so many bytes of a layer, those of its largest bundle."""
    return -(-layer * spec.bundle // spec.layer)


def stored(spec: StepSpec) -> int:
    """Bytes of a layer where it lives."""
    frozen = spec.method.layer_frozen
    if frozen is not None:
        return frozen
    return spec.layer * (spec.method.weights + spec.method.low) + spec.method.layer_state


def rest_stored(spec: StepSpec) -> int:
    """Bytes of embedding, last norm and head where they live."""
    return spec.rest * (spec.method.weights + spec.method.low) + spec.method.rest_state


def device_bytes(spec: StepSpec, place: Placement) -> Bytes:
    """What each device holds at the peak of a step: in the forward pass, when head and loss are
    computed, in the backward pass, when a layer is, after it, when the embedding is, or when
    embedding and head are updated."""
    config, method = spec.config, spec.method
    streamed = config.layers - place.layers
    at_update = place.mode in ("device", "resident")
    sizes = {
        "layers that stay": place.layers * stored(spec),
        "layers passing": min(spec.depth, streamed * spec.bundles)
        * largest(spec, passing(spec, place.mode)),
        "embedding and head": rest_stored(spec)
        if at_update
        else spec.rest * method.weights + method.rest_held,
        "state that stays": config.layers * method.layer_held,
    }
    if not method.trains:
        sizes["layer inputs"] = 2 * spec.layer_input if place.inputs else 0
        return sizes | {"working set": max(spec.working)}
    sizes["layer inputs"] = (place.inputs + 1) * spec.layer_input  # and the gradient of one
    if method.layer_frozen is not None:
        gradients = config.layers * method.layer_thin
        return sizes | {"gradients": gradients, "working set": max(spec.working)}
    layer = config.layers * method.layer_thin or spec.bundle * spec.gradient
    going = 2 if place.mode == "host" and streamed else 1  # one more on its way to the host
    # The gradient of the head, and of an embedding that is the head too, is there before the
    # layers'; that of another embedding comes last. What goes to the host goes as soon as it is
    # whole, in the type of the weights where it waits for its update there.
    passes = rest_passes(place)
    narrowed = spec.clip == "global" or place.mode == "host"
    leaves = spec.clip == "global" or passes
    going_rest = method.weights if leaves and narrowed and spec.gradient > method.weights else 0
    in_parts = GOING * (method.weights if narrowed else spec.gradient)  # of what leaves in parts
    read, at_a_time = spec.read if passes else (spec.embedding, spec.embedding)
    own = spec.rest - spec.embedding
    at_once = own - (config.vocab * config.hidden if passes and spec.head_slice else 0)
    sliced = spec.head_slice if passes else 0
    shared = spec.embedding * spec.gradient if config.tied else 0
    first = shared + at_once * spec.gradient
    kept = shared if leaves else first
    last = kept - shared + at_a_time * spec.gradient
    parts = sliced * (spec.gradient + in_parts)
    parted = at_a_time * (in_parts if at_a_time < spec.embedding else 0)
    working = spec.working
    there = lambda numbers: {"embedding and head": numbers * method.weights} if passes else {}
    inputs = sizes["layer inputs"] + (spec.layer_input if sliced else 0)  # and those of the head
    steps = [
        there(read) | {"gradients": 0, "working set": working.layer},
        there(spec.head)
        | {"gradients": first + parts, "working set": working.head, "layer inputs": inputs},
        there(spec.head) | {"gradients": first + at_once * going_rest, "working set": 0},
        there(0) | {"gradients": kept + going * layer, "working set": working.layer},
        there(at_a_time) | {"gradients": last + parted, "working set": working.embed},
        there(at_a_time) | {"gradients": last + at_a_time * going_rest, "working set": 0},
    ]
    if passes and place.mode == "device":  # all else is gone when the rest is updated
        alone = spec.updated_alone
        steps.append(
            {
                "layers passing": 0,
                "layer inputs": 0,
                "embedding and head": -(-rest_stored(spec) * alone // spec.rest),
                "gradients": -(-rest_waiting(spec) * alone // spec.rest),
                "working set": 0,
            }
        )
    return max((sizes | step for step in steps), key=total)


def rest_passes(place: Placement) -> bool:
    """Whether embedding and head live on the host and come when they are read."""
    return place.mode in ("host", "device")


def rest_waiting(spec: StepSpec) -> int:
    """Bytes of the gradient of embedding and head where it waits for an update on the device."""
    return spec.rest * (spec.method.weights if spec.clip == "global" else spec.gradient)


def host_bytes(spec: StepSpec, place: Placement) -> Bytes:
    """What streaming keeps in host memory, for all devices together."""
    config, method = spec.config, spec.method
    streamed = config.layers - place.layers
    rest = 1 if rest_passes(place) else 0
    on_host = streamed - place.disk
    numbers = on_host * spec.layer + rest * spec.rest
    sizes = {
        "weights": numbers * method.weights,
        "low halves": numbers * method.low,
        "state": on_host * method.layer_state + rest * method.rest_state,
        "window of the disk": disk_window(spec, place),
    }
    if not method.trains:
        sizes["layer inputs"] = 0 if place.inputs else 2 * spec.layer_input * spec.devices
        return sizes | {"bundle returning": min(1, streamed) * passing(spec, place.mode)}
    sizes["layer inputs"] = (config.layers - place.inputs) * spec.layer_input * spec.devices
    if not streamed:
        return sizes
    if spec.clip == "global":
        sizes["gradients"] = (numbers + place.disk * spec.layer) * method.weights
    elif place.mode == "host":
        sizes["gradients"] = max(spec.bundle, spec.rest) * method.weights
    elif place.mode == "device":
        sizes["gradients"] = rest_waiting(spec)
    if place.mode == "device":  # the new one comes while the old one is there
        sizes["bundle returning"] = max(largest(spec, passing(spec, place.mode)), rest_stored(spec))
    return sizes


def together(spec: StepSpec, place: Placement) -> int:
    """Bytes of all devices and the host, where they are the same memory."""
    return spec.devices * total(device_bytes(spec, place)) + total(host_bytes(spec, place))


def disk_window(spec: StepSpec, place: Placement) -> int:
    """Bytes of host memory that bundles of a disk pass through."""
    return min(WINDOW, place.disk * spec.bundles) * largest(spec, stored(spec))


def disk_bytes(spec: StepSpec, place: Placement) -> Bytes:
    """What streaming keeps on a disk."""
    numbers = place.disk * spec.layer
    return {
        "weights": numbers * spec.method.weights,
        "low halves": numbers * spec.method.low,
        "state": place.disk * spec.method.layer_state,
    }


def total(sizes: Bytes) -> int:
    """The bytes of all kinds together."""
    return sum(sizes.values())
