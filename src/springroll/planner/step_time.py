"""How long a streamed step takes, and which resource it waits for.

The forward and the backward pass each take as long as their busiest resource: computation, copies
to the device, copies to the host. Updates on the host run beside both, also beside the forward
pass of the next step. What nothing can hide comes on top: the first bundle on its way in, the last
gradient on its way out, the last update.

Letters: P parameters of the layers that a token meets, N tokens, F FLOP/s. A forward pass is 2 P N
FLOPs, a backward pass computes it again and takes twice as much for gradients: 8 P N for a step.
"""

from __future__ import annotations

from typing import NamedTuple

from springroll.models.decoder_config import DecoderConfig
from springroll.planner.footprint import Job, Placement, passing, rest_stored
from springroll.planner.rates import Rates


class Work(NamedTuple):
    """Executed FLOPs of a step."""

    forward: float
    backward: float
    head: float


class Seconds(NamedTuple):
    """A step: how long each resource is busy, the step, and what it waits for."""

    compute: float
    to_device: float
    to_host: float
    host_update: float
    fill: float
    step: float
    bottleneck: str


def work(job: Job) -> Work:
    """Executed FLOPs, all that the programs do: also the masked half of attention, rows that only
    pad an expert's block, and what is computed again."""
    config, tokens = job.config, job.tokens
    dense = 2.0 * tokens * active_layer(config, job.rows * job.sequence) * config.layers
    attention = 4.0 * tokens * job.sequence * config.heads * config.head_dim * config.layers
    head = 2.0 * tokens * config.vocab * config.hidden
    if not job.recipe.trains:
        return Work(dense + attention, 0.0, head)
    # Scores are computed twice more, logits once more (`models.attention`, `cross_entropy`).
    full = job.recipe.updates != ("lowgrad",)
    return Work(dense + attention, (3 if full else 2) * dense + 4 * attention, 4 * head)


def active_layer(config: DecoderConfig, tokens: int) -> float:
    """Parameters of a layer that a token is multiplied with; of `tokens` together, as experts pad
    their blocks."""
    from springroll.models.dispatch import block_count, block_size

    width = config.heads * config.head_dim
    attention = 2 * config.hidden * (width + config.kv_heads * config.head_dim)
    net = 3 * config.hidden * config.ffn
    if not config.experts:
        return float(attention + net)
    picks = tokens * config.top_k
    size = block_size(picks, config.experts)
    rows = size * block_count(picks, config.experts, size)
    return attention + config.experts * config.hidden + net * rows / tokens


def step_seconds(job: Job, place: Placement, rates: Rates) -> Seconds:
    """The modelled step."""
    config, recipe = job.config, job.recipe
    streamed = config.layers - place.layers
    weights = job.layer * recipe.weights
    done = work(job)
    forward, backward = done.forward / rates.flops, done.backward / rates.flops
    head = done.head / rates.head_flops
    saved = (config.layers - place.inputs) * job.layer_input if recipe.trains else 0
    if not recipe.trains and not place.inputs:
        saved = 2 * config.layers * job.layer_input  # a population's activations come and go
    update = 0.0  # parameters updated on the device
    back = 0.0  # bytes per layer that return to the host
    if place.mode == "host":
        # The gradient leaves in the type of the weights.
        update, back = place.layers * job.layer, weights
    elif place.mode in ("device", "resident"):
        update, back = config.layers * job.layer + job.rest, passing(job, place.mode)
    elif place.mode == "evolve":
        back = weights
    backward += update / rates.device_update
    link_in, link_out = rates.to_device, rates.to_host
    rest_in, rest_out = _rest(job, place)
    if recipe.trains:
        again = streamed * passing(job, place.mode) + saved
        ins = ((streamed * weights + rest_in) / link_in, again / link_in)
        outs = (saved / link_out, (streamed * back + rest_out) / link_out)
    else:
        ins = ((streamed * weights + rest_in + saved) / link_in, 0.0)
        outs = ((streamed * back + saved) / link_out, 0.0)
    cpu = 0.0
    if place.mode == "host":
        cpu = (streamed * job.layer + job.rest) / rates.host_update
    compute = forward + backward + head
    busy = {
        "computing": compute,
        "copying to the device": sum(ins),
        "copying to the host": sum(outs),
        "updating on the host": cpu,
    }
    if rates.shared:
        bottleneck = max(busy, key=lambda name: busy[name])
        return Seconds(compute, sum(ins), sum(outs), cpu, 0.0, sum(busy.values()), bottleneck)
    first = max(forward, ins[0], outs[0])
    second = max(backward + head, ins[1], outs[1])
    if job.clip == "global" and place.mode == "host":
        step = second + max(first, cpu)  # no update before the last gradient is there
    else:
        step = max(first + second, cpu)
    fill = 0.0
    if streamed:
        fill = weights / link_in + back / link_out + cpu / max(1, config.layers)
    step += fill
    bottleneck = max(busy, key=lambda name: busy[name])
    return Seconds(compute, sum(ins), sum(outs), cpu, fill, step, bottleneck)


def _rest(job: Job, place: Placement) -> tuple[int, int]:
    """Bytes of embedding and head to the device and back to the host."""
    weights = job.rest * job.recipe.weights
    if place.layers < job.config.layers and place.mode == "host":
        return weights, weights
    if place.layers < job.config.layers and place.mode == "device":
        return rest_stored(job), rest_stored(job)
    return 0, 0  # it stays


def tokens_to_hide(job: Job, place: Placement, rates: Rates) -> int:
    """Tokens of a step from which on it waits for computation alone; 0 where nothing streams."""
    if place.layers == job.config.layers or rates.shared:
        return 0
    found = step_seconds(job, place, rates)
    saved = job.config.layers - place.inputs
    copied = saved * job.layer_input if job.recipe.trains else 0  # grows with the tokens, hides not
    inwards = found.to_device - copied / rates.to_device
    outwards = found.to_host - copied / rates.to_host
    return round(job.tokens * max(inwards, outwards, found.host_update) / found.compute)
