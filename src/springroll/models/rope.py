"""Rotary positions: pairs of channels turn by an angle that grows with the position.

The halves of a head are the pairs (channel i with channel i + dim / 2), as Hugging Face stores
Llama and Qwen weights. Source: RoFormer, arXiv 2104.09864; scaling: Llama 3.1 model card.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama 3.1: slow channels turn `factor` times slower, fast ones as before, blended between.

    A channel is fast if it turns at least `high_freq_factor` times within `original_length`
    tokens, slow if it turns less than `low_freq_factor` times.
    """

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192


class Rotation(NamedTuple):
    """Cosine and sine per position and channel pair, both (time, head_dim / 2) float32."""

    cos: Array
    sin: Array


def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> np.ndarray:
    """Radians per position of each channel pair, (head_dim / 2,) float32."""
    rate = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    if scaling is not None:
        turns = scaling.original_length * rate / (2 * math.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        kept = np.clip((turns - low) / (high - low), 0, 1)
        rate = rate * (kept + (1 - kept) / scaling.factor)
    return rate.astype(np.float32)


def rotation(time: int, rate: np.ndarray) -> Rotation:
    """The angles of positions 0 .. time - 1."""
    angle = jnp.arange(time, dtype=jnp.float32)[:, None] * jnp.asarray(rate)[None, :]
    return Rotation(jnp.cos(angle), jnp.sin(angle))


def rotate(x_BTHK: Array, turn: Rotation) -> Array:
    """Turn the pairs of every head; computed in float32, returned in the type of x."""
    cos, sin = turn.cos[None, :, None, :], turn.sin[None, :, None, :]
    a, b = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTHK.dtype)
