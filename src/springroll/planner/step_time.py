"""How long a streamed step takes, and which resource it waits for.

The forward and the backward pass each take as long as their busiest resource: computation, copies
to the device, copies to the host. Updates on the host run beside both, also beside the forward
pass of the next step. What nothing can hide comes on top: the first bundle on its way in, the last
gradient on its way out, the last update.

Several devices have a link each: all weights come to every device, and one returns gradients. What
they sum between them, all gradients once per micro-batch, is not overlapped.

Letters: P parameters of the layers that a token meets, N tokens, F FLOP/s. A forward pass is 2 P N
FLOPs, a backward pass computes it again and takes twice as much for gradients: 8 P N for a step.
"""

from typing import NamedTuple

from springroll.models.decoder_config import DecoderConfig
from springroll.planner.devices import Rates
from springroll.planner.footprint import (
    Placement,
    StepSpec,
    passing,
    rest_passes,
    rest_stored,
    rest_waiting,
    stored,
)

DISK = 3e9  # bytes/s that are read from a disk or written to it: an NVMe drive in use both ways


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
    disk: float = 0.0


def work(spec: StepSpec) -> Work:
    """Executed FLOPs, all that the programs do: also for keys that are masked, for rows that only
    pad an expert's block, and for what is computed again."""
    from springroll.models.attention import keys_per_query

    config, tokens = spec.config, spec.tokens
    keys = keys_per_query(spec.rows * config.heads, spec.sequence, spec.platform)
    dense = 2.0 * tokens * active_layer(config, spec.rows * spec.sequence) * config.layers
    attention = 4.0 * tokens * keys * config.heads * config.head_dim * config.layers
    head = 2.0 * tokens * config.vocab * config.hidden
    if not spec.method.trains:
        return Work(dense + attention, 0.0, head)
    # Scores are computed twice more, logits once more (`models.attention`, `cross_entropy`).
    full = spec.method.full_gradients
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


def step_seconds(spec: StepSpec, place: Placement, rates: Rates) -> Seconds:
    """The modelled step."""
    config, method = spec.config, spec.method
    streamed = config.layers - place.layers
    weights = spec.layer * method.weights
    executed = work(spec)
    flops = spec.at_once * rates.flops
    forward, backward = executed.forward / flops, executed.backward / flops
    again = 5 / 4 if method.trains and rest_passes(place) and spec.head_slice else 1  # logits
    head = again * executed.head / (spec.devices * rates.head_flops)
    saved = (config.layers - place.inputs) * spec.layer_input if method.trains else 0
    if not method.trains and not place.inputs:
        saved = 2 * config.layers * spec.layer_input  # a population's activations come and go
    update = 0.0  # parameters updated on the device
    back = 0.0  # bytes per layer that return to the host
    if place.mode == "host":
        # The gradient leaves in the type of the weights.
        update, back = place.layers * spec.layer, weights
    elif place.mode in ("device", "resident") and spec.method.layer_frozen is None:
        update, back = config.layers * spec.layer + spec.rest, passing(spec, place.mode)
    elif place.mode == "evolve":
        back = weights
    backward += update / rates.device_update + summed(spec) / (rates.between or rates.to_device)
    link_in, link_out = rates.to_device, rates.to_host
    rest_in, rest_out = _rest(spec, place)
    if method.trains:
        again = streamed * passing(spec, place.mode) + saved
        ins = ((streamed * weights + rest_in) / link_in, again / link_in)
        outs = (saved / link_out, (streamed * back + rest_out) / link_out)
    else:
        ins = ((streamed * weights + rest_in + saved) / link_in, 0.0)
        outs = ((streamed * back + saved) / link_out, 0.0)
    cpu = 0.0
    if place.mode == "host":
        cpu = (streamed * spec.layer + spec.rest) / rates.host_update
    compute = forward + backward + head
    busy = {
        "computing": compute,
        "copying to the device": sum(ins),
        "copying to the host": sum(outs),
        "updating on the host": cpu,
    }
    shared = sum(busy.values())
    disk = disk_traffic(spec, place) / DISK
    if disk:
        busy["reading and writing the disk"] = disk
    if rates.shared:
        bottleneck = max(busy, key=lambda name: busy[name])
        step = max(shared, disk)
        return Seconds(compute, sum(ins), sum(outs), cpu, 0.0, step, bottleneck, disk)
    first = max(forward, ins[0], outs[0])
    second = max(backward + head, ins[1], outs[1])
    if spec.clip == "global" and place.mode == "host":
        step = second + max(first, cpu)  # no update before the last gradient is there
    else:
        step = max(first + second, cpu)
    fill = 0.0
    if streamed:
        fill = weights / link_in + back / link_out + cpu / max(1, config.layers)
    step = max(step + fill, disk)
    bottleneck = max(busy, key=lambda name: busy[name])
    return Seconds(compute, sum(ins), sum(outs), cpu, fill, step, bottleneck, disk)


def disk_traffic(spec: StepSpec, place: Placement) -> int:
    """Bytes that a step reads from a disk and writes to it: weights forward, everything back."""
    weights = spec.layer * spec.method.weights
    if place.mode == "lowgrad":
        return 2 * place.disk * weights
    return place.disk * (weights + 2 * stored(spec))


def summed(spec: StepSpec) -> float:
    """Bytes that each device passes on while gradients are summed over the devices, in a ring."""
    layers = spec.method.layer_thin or spec.layer * spec.method.weights
    gradients = spec.config.layers * layers + spec.rest * spec.method.weights
    trains = spec.method.trains and spec.devices > 1
    return 2 * (spec.devices - 1) / spec.devices * spec.parts * gradients if trains else 0.0


def _rest(spec: StepSpec, place: Placement) -> tuple[int, int]:
    """Bytes of embedding and head to the device and back to the host."""
    if place.layers == spec.config.layers or not rest_passes(place):
        return 0, 0  # they stay on the device
    weights, (read, _) = spec.method.weights, spec.read
    comes = (spec.head + 2 * read) * weights  # what is embedded comes again for its gradient
    if place.mode == "host":
        return comes, (spec.rest - spec.embedding + read) * weights
    waits = rest_waiting(spec)
    return comes + rest_stored(spec) + waits, rest_stored(spec) + waits


def tokens_to_hide(spec: StepSpec, place: Placement, rates: Rates) -> int:
    """Tokens of a step from which on it waits for computation alone; 0 where nothing streams."""
    if place.layers == spec.config.layers or rates.shared:
        return 0
    seconds = step_seconds(spec, place, rates)
    saved = spec.config.layers - place.inputs
    copied = saved * spec.layer_input if spec.method.trains else 0  # grows with the tokens
    inwards = seconds.to_device - copied / rates.to_device
    outwards = seconds.to_host - copied / rates.to_host
    return round(spec.tokens * max(inwards, outwards, seconds.host_update) / seconds.compute)
