"""Computing something once, although XLA would rather compute it again in every consumer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax


def once(make: Callable[[], Any], epoch: Array) -> Any:
    """The arrays that `make` returns, written to memory before anything reads them.

    Cheap elementwise producers such as counted noise are otherwise fused, and so repeated, into
    each consumer: the forward and the update of one step would each draw anew. The CPU compiler
    drops `lax.optimization_barrier` before it fuses, but keeps a conditional it cannot decide.
    `epoch` is an integer scalar that we know to be >= 0 and XLA does not.
    """

    def conditional() -> Any:
        shapes = jax.eval_shape(make)
        zeros = lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return lax.cond(epoch >= 0, make, zeros)

    return lax.platform_dependent(cpu=conditional, default=lambda: lax.optimization_barrier(make()))
