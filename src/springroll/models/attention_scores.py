"""Scores of queries with keys, and which keys a query sees.

Letters are those of `springroll.models.attention`.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from springroll.models.decoder_config import DecoderConfig
from springroll.models.layers import soft_cap

MASKED = float(np.finfo(np.float32).min)


class Sight(NamedTuple):
    """What limits the keys that a query sees, besides that none comes after it."""

    window: Array | None = None  # () int32: how many keys up to the query itself; None: all
    segments: Array | None = None  # (B, S), such as documents: keys of its own; None: all


ALL = Sight()


def scores(config: DecoderConfig, q_BTHK: Array, k_BSNK: Array) -> Array:
    """Of every query with every key, divided by the root of the width and capped: (B, N, G, T, S)
    float32."""
    q = grouped(q_BTHK, k_BSNK.shape[2])
    product = jnp.einsum("BTNGK,BSNK->BNGTS", q, k_BSNK, preferred_element_type=jnp.float32)
    return scaled(config, product)


def scaled(config: DecoderConfig, product: Array) -> Array:
    """Scores from products q k."""
    scale = np.float32((config.query_scale or config.head_dim) ** -0.5)
    return soft_cap(product * scale, config.score_cap)


def seen(sight: Sight, query: Array, key: Array) -> Array:
    """Which of the keys at positions (S,) each query at (T,) sees: (B or 1, 1, 1, T, S) bool."""
    # Computed where it is used: as a constant it would take T S numbers in the program.
    shape = (*query.shape, *key.shape)
    back = lax.broadcast_in_dim(query, shape, (0,)) - lax.broadcast_in_dim(key, shape, (1,))
    see = back >= 0
    if sight.window is not None:
        see = see & (back < sight.window.reshape(1, 1))
    see = see[None]
    segments = sight.segments
    if segments is not None:
        of = lambda at: jnp.take(segments, at, axis=1, mode="clip")
        see = see & (of(query)[:, :, None] == of(key)[:, None, :])
    return see[:, None, None]


def grouped(x_BTHK: Array, kv_heads: int) -> Array:
    """Heads by the key-value head they share: (B, T, N, G, K)."""
    return x_BTHK.reshape(*x_BTHK.shape[:2], kv_heads, -1, x_BTHK.shape[-1])
