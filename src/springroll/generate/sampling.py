"""The next token of every row, and its logarithmic probability."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Draw(NamedTuple):
    """How tokens are chosen; all rows alike."""

    key: Array  # () of the seed
    temperature: Array  # () float32, not looked at when the likeliest token is taken


def row_keys(key: Array, member: Array, prompt: Array, count: Array) -> Array:
    """A key per row from (seed, member, prompt, position) and nothing else: (R,)."""
    fold = lambda member, prompt, count: jax.random.fold_in(
        jax.random.fold_in(jax.random.fold_in(key, member), prompt), count
    )
    return jax.vmap(fold)(member, prompt, count)


def choose(
    draw: Draw, logits: Array, member: Array, prompt: Array, count: Array, sampled: bool
) -> Array:
    """One token per row, (R,) int32, from logits (R, V) float32.

    With `sampled` drawn from softmax(logits / temperature), else the likeliest (the first of equal
    ones). `count` (R,) is how many tokens the row has been given before.
    """
    if not sampled:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    keys = row_keys(draw.key, member, prompt, count)
    return jax.vmap(jax.random.categorical)(keys, logits / draw.temperature).astype(jnp.int32)


def log_probability(draw: Draw, logits: Array, tokens: Array, sampled: bool) -> Array:
    """log of the probability that `tokens` (R,) had in softmax(logits / temperature): (R,) float32.

    Where the likeliest token is taken, of softmax(logits).
    """
    scaled = logits / draw.temperature if sampled else logits
    chosen = jnp.take_along_axis(scaled, tokens[:, None], axis=-1)[:, 0]
    return chosen - jax.nn.logsumexp(scaled, axis=-1)
