"""Rates of the machine at hand, by running what a step runs.

`quickly` takes a second and is good for a table; `measure` runs one layer of the model at its real
shapes, and is what predictions are compared with (`springroll bench plan_accuracy`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from springroll.stream.rates import UPDATE_BYTES, Rates

SIDE = 1024  # of the matrices that `quickly` multiplies
COPIED = 1 << 26  # bytes that it copies


def quickly() -> Rates:
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


def seconds(call: Callable[[], Any], repeats: int = 5) -> float:
    """Median wall seconds of a call whose result is waited for, after one that is not counted."""
    jax.block_until_ready(call())
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        found.append(time.perf_counter() - start)
    return statistics.median(found)
