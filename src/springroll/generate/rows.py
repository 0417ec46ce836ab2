"""The model on all rows: with the same weights for all, or with a member's own for each.

Rows of a population stand in groups: a group holds the thin factors of one antithetic pair, and
each of its rows a sign of its own (+1 and -1 for the two members, 0 for the weights themselves).
Every base weight meets all rows in one product; the thin terms are products batched by group.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from springroll.evolve.perturbation import Factors, Perturbation
from springroll.models.protocols import Entries, Generative, Memory
from springroll.thin.transform import factored


class Thin(NamedTuple):
    """What makes rows those of members: factors of each group's pair, and the size of the steps."""

    factors: Factors
    sigma: Array  # () float32


def bound(perturbation: Perturbation, drawn: Factors, pairs: Array, dtype: Any) -> Factors:
    """The factors of the pairs (G,) that groups hold, real ones in the type of the weights."""
    axes = perturbation.pair_axes()

    def take(x: Array, axis: int) -> Array:
        found = jnp.take(x, pairs, axis=axis, mode="clip")
        return found.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else found

    return {path: tuple(take(x, axes[path]) for x in group) for path, group in drawn.items()}


def read(
    model: Generative,
    perturbation: Perturbation | None,
    params: Any,
    thin: Thin | None,
    sign: Array,
    tokens: Array,
    lengths: Array,
) -> tuple[Array, Entries]:
    """`model.read` with sign (G, g), tokens (G, g, T), lengths (G, g); results are by row."""
    flat = lambda x: x.reshape(-1, *x.shape[2:])
    if perturbation is None:
        return model.read(params, flat(tokens), flat(lengths))
    assert thin is not None

    def row(factors: Factors, sign: Array, tokens: Array, length: Array) -> Any:
        weights = perturbation.attach(params, factors, sign, thin.sigma)
        return factored(model.read)(weights, tokens[None], length[None])

    by_row = jax.vmap(row, (None, 0, 0, 0), (0, 1))
    by_group = jax.vmap(by_row, (perturbation.pair_axes(), 0, 0, 0), (0, 1))
    return _rows_together(*by_group(thin.factors, sign, tokens, lengths))


def step(
    model: Generative,
    perturbation: Perturbation | None,
    params: Any,
    thin: Thin | None,
    sign: Array,
    tokens: Array,
    memory: Memory,
    seen: Array,
    clock: Array,
) -> tuple[Array, Entries]:
    """`model.step` with sign (G, g) and everything else by row, R = G g."""
    if perturbation is None:
        return model.step(params, tokens, memory, seen, clock)
    assert thin is not None
    shape = sign.shape

    def row(factors: Factors, sign: Array, token: Array, memory: Memory, seen: Array) -> Any:
        weights = perturbation.attach(params, factors, sign, thin.sigma)
        memory = jax.tree.map(lambda x: x[:, None], memory)
        return factored(model.step)(weights, token[None], memory, seen[None], clock)

    by_row = jax.vmap(row, (None, 0, 0, 1, 0), (0, 1))
    by_group = jax.vmap(by_row, (perturbation.pair_axes(), 0, 0, 1, 0), (0, 1))
    split = lambda x: x.reshape(shape)
    memory = jax.tree.map(lambda x: x.reshape(x.shape[0], *shape, *x.shape[2:]), memory)
    return _rows_together(*by_group(thin.factors, sign, split(tokens), memory, split(seen)))


def _rows_together(logits: Array, found: Entries) -> tuple[Array, Entries]:
    """Logits (G, g, 1, V) and found (L, G, g, 1, ...) by row."""
    found = jax.tree.map(lambda x: x.reshape(x.shape[0], -1, *x.shape[4:]), found)
    return logits.reshape(-1, logits.shape[-1]), found
