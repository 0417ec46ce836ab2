"""Which registers this machine multiplies small integers in fastest.

The choice never changes a bit of any result.
"""

import functools
import statistics
import time

import jax
import jax.numpy as jnp

from springroll.quant.fixed_point import Registers, dot

_SIZE = 512
_ROUNDS = 5


@functools.cache
def fastest_registers() -> Registers:
    """Times both on the default device, once per process: about 0.2 s with compilation."""
    if jax.default_backend() != "cpu":
        return "int8"
    times = matmul_seconds()
    return "int8" if times["int8"] <= times["float32"] else "float32"


def matmul_seconds() -> dict[str, float]:
    """Median seconds of a 512 x 512 x 512 product of int8 values, by register type."""
    x = jnp.ones((_SIZE, _SIZE), jnp.int8)
    weights = {"int8": x, "float32": x.astype(jnp.float32)}
    run = jax.jit(dot)
    for w in weights.values():
        jax.block_until_ready(run(x, w))
    taken: dict[str, list[float]] = {name: [] for name in weights}
    for _ in range(_ROUNDS):
        for name, w in weights.items():
            start = time.perf_counter()
            jax.block_until_ready(run(x, w))
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}
