"""The weights of every member, formed one by one: what code that is no JAX needs."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from springroll.evolve.members import Members, chunks_of
from springroll.factored.factored import Factored

_CHUNK_BYTES = 1 << 23  # larger chunks take twice as long per member, outside the cache


def member_weights(
    params: Any, members: Members, fewest: int = 1, chunk_bytes: int = _CHUNK_BYTES
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """`params + sigma E_i` of all members on the host, some at a time: `fewest` or more.

    Yields the number of the first member of a chunk, and for every leaf of `params`, in JAX's
    order, an array (members of the chunk, *shape). While one chunk is used the next is computed.
    """
    pairs, signs = members.pairs.shape[0], len(members.perturbation.signs)
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
    count, each = chunks_of(pairs, max(-(-fewest // signs), chunk_bytes // (size * signs)))
    starts = [min(index * each, pairs - each) for index in range(count)]
    ahead = _formed(each, params, members, jnp.int32(starts[0]))
    for index, start in enumerate(starts):
        here = ahead
        if index + 1 < count:
            ahead = _formed(each, params, members, jnp.int32(starts[index + 1]))
        skip = (index * each - start) * signs  # a last chunk that starts earlier to be full
        yield start * signs + skip, [np.asarray(x)[skip:] for x in jax.tree.leaves(here)]


@functools.partial(jax.jit, static_argnums=0)
def _formed(count: int, params: Any, members: Members, start: Array) -> Any:
    part, perturbation = members.chunk(start, count), members.perturbation

    def one(sign: Array, factors: Any) -> Any:
        attached = perturbation.attach(params, factors, sign, members.sigma)
        return jax.tree.map(_dense, attached, is_leaf=lambda x: isinstance(x, Factored))

    by_sign = jax.vmap(one, in_axes=(0, None))
    by_pair = jax.vmap(by_sign, in_axes=(None, perturbation.pair_axes()))
    formed = by_pair(jnp.asarray(perturbation.signs, jnp.float32), part.drawn())
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), formed)


def _dense(x: Any) -> Array:
    return x.dense() if isinstance(x, Factored) else x
