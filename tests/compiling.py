"""Programs that a test runs once or twice: less time in the compiler, the same arithmetic."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

FAST_TO_COMPILE = {"xla_backend_optimization_level": 0}
quick_jit = functools.partial(jax.jit, compiler_options=FAST_TO_COMPILE)


def normal(seed, *shape, dtype=jnp.float32):
    """Standard normal numbers, drawn by NumPy: no program to compile."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def temporary_bytes(compiled):
    """What a compiled program needs beside its arguments and results."""
    analysis = compiled.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes
