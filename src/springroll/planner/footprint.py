"""Bytes of a streamed step on the device and on the host, by kind; exact arithmetic over shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from springroll.models.decoder_config import DecoderConfig, shapes, size
from springroll.planner.methods import Mode, Recipe, layer_numbers, rest_numbers
from springroll.planner.working_set import WorkingSet

Clip = Literal["none", "global", "previous", "layer"]
Bytes = dict[str, int]  # by kind


@dataclass(frozen=True)
class Job:
    """What a step has to do.

    tokens: of a step, in micro-batches of `rows` sequences of `sequence` tokens; for evolve those
    of all members of a generation. depth: bundles on the device at a time, which are layers, or
    with `experts_per_bundle` attention or so many experts.
    """

    config: DecoderConfig
    recipe: Recipe
    tokens: int
    rows: int
    sequence: int
    working: WorkingSet
    depth: int = 3
    clip: Clip = "previous"
    experts_per_bundle: int | None = None

    @property
    def parts(self) -> int:
        """Micro-batches of a step."""
        return self.tokens // (self.rows * self.sequence)

    @property
    def layer(self) -> int:
        """Parameters of a layer."""
        return layer_numbers(self.config)

    @property
    def bundles(self) -> int:
        """That a layer passes as."""
        return 1 + self.config.experts // self.experts_per_bundle if self.experts_per_bundle else 1

    @property
    def bundle(self) -> int:
        """Parameters of the largest of them."""
        if not self.experts_per_bundle:
            return self.layer
        experts = size(shapes(self.config)["layers"]["mlp"]["experts"]) // self.config.layers
        few = experts // self.config.experts * self.experts_per_bundle
        return max(few, self.layer - experts)

    @property
    def rest(self) -> int:
        """Parameters of no layer."""
        return rest_numbers(self.config)

    @property
    def layer_input(self) -> int:
        """Bytes of one layer's inputs, of all micro-batches; those of its experts too, where they
        are bundles: as wide, and a float32 weight per expert."""
        one = self.config.hidden * self.recipe.weights
        if self.experts_per_bundle:
            one = 2 * one + 4 * self.config.experts
        return self.tokens * one

    @property
    def gradient(self) -> int:
        """Bytes per number of a gradient: summed in float32, one micro-batch as computed."""
        return 4 if self.parts > 1 else self.recipe.weights


@dataclass(frozen=True)
class Placement:
    """What stays on the device.

    mode: where streamed layers are updated; "resident" when there are none.
    layers: how many layers stay, with their state. inputs: the saved inputs of how many layers do.
    """

    mode: Mode
    layers: int
    inputs: int


def passing(job: Job, mode: Mode) -> int:
    """Bytes of a layer on its way to its update: weights, and state where that is on the device."""
    weights = job.layer * job.recipe.weights
    if mode in ("device", "resident"):
        return weights + job.layer * job.recipe.low + job.recipe.layer_state
    return weights


def largest(job: Job, layer: int) -> int:
    """Of so many bytes of a layer, those of its largest bundle."""
    return -(-layer * job.bundle // job.layer)


def stored(job: Job) -> int:
    """Bytes of a layer where it lives."""
    return job.layer * (job.recipe.weights + job.recipe.low) + job.recipe.layer_state


def rest_stored(job: Job) -> int:
    """Bytes of embedding, last norm and head where they live."""
    return job.rest * (job.recipe.weights + job.recipe.low) + job.recipe.rest_state


def device_bytes(job: Job, place: Placement) -> Bytes:
    """What the device holds at the peak of a step: between the passes, when head and loss are
    computed, or in the backward pass, when a layer is."""
    config, recipe = job.config, job.recipe
    streamed = config.layers - place.layers
    at_update = place.mode in ("device", "resident")
    found = {
        "layers that stay": place.layers * stored(job),
        "layers passing": min(job.depth, streamed * job.bundles)
        * largest(job, passing(job, place.mode)),
        "embedding and head": rest_stored(job)
        if at_update
        else job.rest * recipe.weights + recipe.rest_held,
        "state that stays": config.layers * recipe.layer_held,
    }
    if not recipe.trains:
        found["layer inputs"] = 2 * job.layer_input if place.inputs else 0
        return found | {"working set": max(job.working)}
    found["layer inputs"] = (place.inputs + 1) * job.layer_input  # and the gradient of one
    rest = job.rest * job.gradient
    layer = config.layers * recipe.layer_thin or job.bundle * job.gradient
    going = 2 if place.mode == "host" and streamed else 1  # one more on its way to the host
    head = {"gradients": rest, "working set": job.working.head}
    back = {"gradients": rest + going * layer, "working set": job.working.layer}
    return found | max(head, back, key=total)


def host_bytes(job: Job, place: Placement) -> Bytes:
    """What streaming keeps in host memory."""
    config, recipe = job.config, job.recipe
    streamed = config.layers - place.layers
    rest = 1 if place.mode in ("host", "device") else 0
    numbers = streamed * job.layer + rest * job.rest
    found = {
        "weights": numbers * recipe.weights,
        "low halves": numbers * recipe.low,
        "state": streamed * recipe.layer_state + rest * recipe.rest_state,
    }
    if not recipe.trains:
        found["layer inputs"] = 0 if place.inputs else 2 * job.layer_input
        return found | {"bundle returning": min(1, streamed) * passing(job, place.mode)}
    found["layer inputs"] = (config.layers - place.inputs) * job.layer_input
    if not streamed:
        return found
    if job.clip == "global":
        found["gradients"] = numbers * recipe.weights
    elif place.mode == "host":
        found["gradients"] = max(job.bundle, job.rest) * recipe.weights
    if place.mode == "device":  # the new one comes while the old one is there
        found["bundle returning"] = max(largest(job, passing(job, place.mode)), rest_stored(job))
    return found


def total(found: Bytes) -> int:
    """All kinds together."""
    return sum(found.values())
