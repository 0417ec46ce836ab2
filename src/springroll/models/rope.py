"""Rotary positions: pairs of channels turn by an angle that grows with the position.

The halves of a head are the pairs (channel i with channel i + dim / 2), as Hugging Face stores
Llama and Qwen weights. Source: RoFormer, arXiv 2104.09864.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import Array

from springroll.errors import InputError
from springroll.models.config_checks import check_numbers


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1: slow channels turn `factor` times slower, fast ones as before, blended between.

    A channel is fast if it turns at least `high_freq_factor` times within `original_length`
    tokens, slow if it turns less than `low_freq_factor` times.
    """

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192

    def __post_init__(self) -> None:
        check_numbers(self, "factor", "low_freq_factor", "high_freq_factor", "original_length")
        if self.low_freq_factor >= self.high_freq_factor:
            raise InputError(
                f"low_freq_factor is {self.low_freq_factor:g} and high_freq_factor "
                f"{self.high_freq_factor:g}; the first must be smaller"
            )

    @property
    def gain(self) -> float:
        return 1.0

    def share_kept(self, rate: np.ndarray) -> np.ndarray:
        """How much of its own rate each channel keeps, 0 to 1."""
        turns = self.original_length * rate / (2 * math.pi)
        low, high = self.low_freq_factor, self.high_freq_factor
        return np.clip((turns - low) / (high - low), 0, 1)


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN: as `Llama3Scaling`, but blended evenly over the channels, and scores get a `gain`.

    Source: arXiv 2309.00071, as transformers computes it. `truncate` widens the blended range to
    whole channels (gpt-oss does not).
    """

    factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    original_length: int = 4096
    truncate: bool = True

    def __post_init__(self) -> None:
        check_numbers(self, "factor", "beta_fast", "beta_slow", "original_length")

    @property
    def gain(self) -> float:
        """On queries and keys alike: 0.1 ln(factor) + 1."""
        return 0.1 * math.log(self.factor) + 1 if self.factor > 1 else 1.0

    def share_kept(self, rate: np.ndarray) -> np.ndarray:
        """How much of its own rate each channel keeps, 0 to 1."""
        log_theta = -math.log(rate[1])  # per channel
        channel = lambda turns: math.log(self.original_length / (turns * 2 * math.pi)) / log_theta
        fast, slow = channel(self.beta_fast), channel(self.beta_slow)
        if self.truncate:
            fast, slow = math.floor(fast), math.ceil(slow)
        fast, slow = max(fast, 0), min(slow, 2 * len(rate) - 1)
        return 1 - np.clip((np.arange(len(rate)) - fast) / max(slow - fast, 1e-3), 0, 1)


RopeScaling: TypeAlias = Llama3Scaling | YarnScaling


class Rotation(NamedTuple):
    """Cosine and sine (times a gain) per position and pair, both (time, head_dim / 2) float32."""

    cos: Array
    sin: Array


def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> np.ndarray:
    """Radians per position of each channel pair, (head_dim / 2,) float64."""
    rate = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    if scaling is None:
        return rate
    share = scaling.share_kept(rate)
    return rate * (share + (1 - share) / scaling.factor)


def rotation(
    time: int, head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> Rotation:
    """The rotations of positions 0 .. time - 1."""
    return rotation_at(jnp.arange(time, dtype=jnp.float32), head_dim, theta, scaling)


def rotation_at(
    place: Array, head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> Rotation:
    """The rotations of any positions (time,)."""
    rate = jnp.asarray(frequencies(head_dim, theta, scaling), jnp.float32)
    angle = place.astype(jnp.float32)[:, None] * rate[None, :]
    gain = np.float32(1.0 if scaling is None else scaling.gain)
    return Rotation(jnp.cos(angle) * gain, jnp.sin(angle) * gain)


def rotate(x_BTHK: Array, turn: Rotation) -> Array:
    """Turn the pairs of every head; computed in float32, returned in the type of x."""
    cos, sin = turn.cos[None, :, None, :], turn.sin[None, :, None, :]
    a, b = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTHK.dtype)
