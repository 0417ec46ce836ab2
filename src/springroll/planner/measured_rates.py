"""Rates of the machine at hand, by running what a step runs.

`quick_rates` takes a second and is good for a table; `measure_rates` runs one layer of the model
at its real shapes, and is what predictions are compared with (`springroll bench plan_accuracy`).
"""

import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from springroll.cpu import cores
from springroll.models.decoder import decoder
from springroll.planner.devices import UPDATE_BYTES, Rates
from springroll.planner.footprint import StepSpec
from springroll.planner.step_time import work
from springroll.planner.working_set import arguments
from springroll.stream.step_programs import StepPrograms
from springroll.trees import PyTree, squared_norm, tree_bytes

SIDE = 1024  # of the matrices that `quick_rates` multiplies
COPIED = 1 << 26  # bytes that it copies


def quick_rates() -> Rates:
    """From one product of matrices and one copy."""
    device = jax.devices()[0]
    a = jnp.ones((SIDE, SIDE), jnp.float32)
    product = jax.jit(jnp.matmul)
    flops = 2 * SIDE**3 / seconds(lambda: product(a, a))
    block, into = np.zeros(COPIED, np.int8), np.empty(COPIED, np.int8)
    copied = COPIED / seconds(lambda: np.copyto(into, block))
    # A copy reads and writes, and a host has more cores than the one that copies here.
    update = 2 * copied / UPDATE_BYTES
    return Rates(
        flops=flops,
        head_flops=flops,
        to_device=copied,
        to_host=copied,
        host_update=update,
        device_update=update,
        shared=device.platform == "cpu",
        source="one product and one copy, measured here",
    )


def seconds(call: Callable[[], PyTree], repeats: int = 3) -> float:
    """Median wall seconds of a call whose result is waited for, after one that is not counted."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure_rates(spec: StepSpec, optimizer: optax.GradientTransformation) -> Rates:
    """Rates of this machine, from running one layer at its real shapes; see `calibration`.

    Args:
        spec: The step, such as `sr.plan(...).spec`.
        optimizer: Of one layer.

    Returns:
        What `sr.plan` takes as `rates`.
    """
    return calibration(spec, optimizer)()


def calibration(spec: StepSpec, optimizer: optax.GradientTransformation) -> Callable[[], Rates]:
    """What measures the rates of a spec, as often as it is called.

    What accompanies a program is counted with it: with the head the embedding, with an update the
    norm of the gradient.

    Args:
        optimizer: of one layer.
    """
    from springroll.stream.link import Link

    config, dtype = spec.config, "float32" if spec.method.weights == 4 else "bfloat16"
    arrays = filled(arguments(config, spec.rows, spec.sequence, dtype))
    programs = StepPrograms(decoder(config), parts=spec.parts)
    stats = [arrays.stats] * config.layers
    index = jnp.zeros((), jnp.int32)
    link = Link()
    layer_on_host = link.fetch(arrays.layer).result()
    size = tree_bytes(arrays.layer)
    executed = work(dataclasses.replace(spec, tokens=spec.rows * spec.sequence))
    on_host, on_device = host_update(arrays.layer), device_update(arrays.layer, optimizer)

    def forward() -> PyTree:
        return programs.forward(arrays.layer, None, arrays.x, index)

    def backward() -> PyTree:
        return programs.backward(arrays.layer, None, arrays.x, index, arrays.x, arrays.stats, None)

    def head() -> PyTree:
        x, _ = programs.embed(arrays.rest, None, arrays.tokens)
        _, _, (own, common), *_ = programs.finish(
            arrays.rest, None, arrays.x, stats, arrays.tokens, None
        )
        return x, own, programs.embed_backward(arrays.rest, None, arrays.tokens, arrays.x, common)

    summed = [backward()[0]]

    def further() -> PyTree:  # micro-batches after the first are added to its gradient
        summed[0], dx, _ = programs.backward(
            arrays.layer, None, arrays.x, index, arrays.x, arrays.stats, summed[0]
        )
        return summed[0], dx

    def rates() -> Rates:
        back = seconds(backward) + (spec.parts - 1) * (seconds(further) if spec.parts > 1 else 0.0)
        layer = seconds(forward) + back / spec.parts
        return Rates(
            flops=(executed.forward + executed.backward) / layer / config.layers,
            head_flops=executed.head / seconds(head),
            to_device=size / seconds(lambda: link.send(layer_on_host).result()),
            to_host=size / seconds(lambda: link.fetch(arrays.layer).result()),
            host_update=spec.layer / seconds(on_host),
            device_update=spec.layer / seconds(on_device),
            shared=jax.devices()[0].platform == "cpu",
            source="one layer, run here",
        )

    return rates


def host_update(layer: PyTree) -> Callable[[], None]:
    """A call that updates a layer by AdamW on the host, with all cores."""
    from springroll.stream.host_adamw import AdamW, zeros
    from springroll.stream.priority_pool import PriorityPool

    weights = jax.tree.map(lambda w: np.zeros(w.shape, w.dtype), layer)
    state = zeros(weights)
    pool = PriorityPool(cores())

    def update() -> None:
        pool.submit(0, AdamW(1e-4).jobs(weights, state, weights, step=1))
        pool.wait(0)

    return update


def device_update(layer: PyTree, optimizer: optax.GradientTransformation) -> Callable[[], PyTree]:
    """A call that updates a layer on the device."""
    from springroll.stream.device_update import DeviceUpdate

    update = DeviceUpdate(optimizer)
    wide = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), layer)
    state = optimizer.init({"layers": wide})  # compiled, XLA would fold it for a minute
    one, index = jnp.ones((), jnp.float32), jnp.zeros((), jnp.int32)
    latest = [(jax.tree.map(jnp.copy, layer), state)]

    def step() -> PyTree:
        latest[0] = update.of_layer(*latest[0], layer, one, one > 0, None, index)
        return latest[0], squared_norm(layer)

    return step


def filled(shapes: PyTree) -> PyTree:
    """Arrays of these shapes, small numbers."""
    fill = lambda s: jnp.full(s.shape, 1 if s.dtype == jnp.int32 else 0.01, s.dtype)
    return jax.tree.map(fill, shapes)
