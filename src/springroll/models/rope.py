"""Rotary positions: pairs of channels turn by an angle that grows with the position.

The halves of a head are the pairs (channel i with channel i + dim / 2), as Hugging Face stores
Llama and Qwen weights. Source: RoFormer, arXiv 2104.09864.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import Array

from springroll.errors import InputError, brief
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

    def slowed(self, rate: np.ndarray) -> np.ndarray:
        return _blended(rate, self.share_kept(rate), self.factor)

    def share_kept(self, rate: np.ndarray) -> np.ndarray:
        """How much of its own rate each channel keeps, 0 to 1."""
        turns = self.original_length * rate / (2 * math.pi)
        low, high = self.low_freq_factor, self.high_freq_factor
        return np.clip((turns - low) / (high - low), 0, 1)


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN: as `Llama3Scaling`, but blended evenly over the channels, and scores get a `gain`.

    Source: arXiv 2309.00071, as transformers computes it. `truncate` widens the blended range to
    whole channels (gpt-oss does not). `attention_factor` is the gain, if it is not that of the
    paper, 0.1 ln(factor) + 1.
    """

    factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    original_length: int = 4096
    truncate: bool = True
    attention_factor: float = 0.0  # 0: that of the paper

    def __post_init__(self) -> None:
        check_numbers(self, "factor", "beta_fast", "beta_slow", "original_length")
        check_numbers(self, "attention_factor", zero=True)

    @property
    def gain(self) -> float:
        """On queries and keys alike."""
        return self.attention_factor or yarn_gain(self.factor)

    def slowed(self, rate: np.ndarray) -> np.ndarray:
        return _blended(rate, self.share_kept(rate), self.factor)

    def share_kept(self, rate: np.ndarray) -> np.ndarray:
        """How much of its own rate each channel keeps, 0 to 1."""
        log_theta = -math.log(rate[1])  # per channel
        channel = lambda turns: math.log(self.original_length / (turns * 2 * math.pi)) / log_theta
        fast, slow = channel(self.beta_fast), channel(self.beta_slow)
        if self.truncate:
            fast, slow = math.floor(fast), math.ceil(slow)
        fast, slow = max(fast, 0), min(slow, 2 * len(rate) - 1)
        return 1 - np.clip((np.arange(len(rate)) - fast) / max(slow - fast, 1e-3), 0, 1)


def _by_length(length: Array, *channels: np.ndarray) -> Iterator[Array]:
    """Numbers of the channels as float32, to go with one length () or many (time,)."""
    for each in channels:
        yield jnp.asarray(each, jnp.float32).reshape((1,) * length.ndim + each.shape)


def yarn_gain(factor: float, mscale: float = 1.0) -> float:
    """0.1 mscale ln(factor) + 1."""
    return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0


def _check_factors(name: str, *factors: float) -> None:
    """Raise InputError for numbers with which rates are no float32."""
    for factor in factors:
        if not 1e-6 <= factor <= 1e6:
            raise InputError(f"{name} is {brief(factor)}; expected 1e-6 to 1e6")


def _blended(rate: np.ndarray, share: np.ndarray, factor: float) -> np.ndarray:
    """Of each rate a share as it is and the rest `factor` times slower."""
    return rate * (share + (1 - share) / factor)


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """All channels turn `factor` times slower (arXiv 2306.15595)."""

    factor: float

    def __post_init__(self) -> None:
        _check_factors("factor", self.factor)

    @property
    def gain(self) -> float:
        return 1.0

    def slowed(self, rate: np.ndarray) -> np.ndarray:
        return rate / self.factor


@dataclass(frozen=True, kw_only=True)
class DynamicScaling:
    """NTK-aware: in a text longer than `original_length` the base grows with the length.

    It is theta (1 + factor (length / original_length - 1))^(dim / (dim - 2)), as in transformers.
    """

    factor: float
    original_length: int

    def __post_init__(self) -> None:
        check_numbers(self, "original_length")
        _check_factors("factor", self.factor)

    @property
    def gain(self) -> float:
        return 1.0

    def slowed(self, rate: np.ndarray) -> np.ndarray:
        return rate

    def at_length(self, rate: np.ndarray, length: Array) -> Array:
        over = jnp.maximum(length.astype(jnp.float32) - np.float32(self.original_length), 0)
        grown = 1 + over * np.float32(self.factor / self.original_length)
        power = -2 * np.arange(len(rate)) / (2 * len(rate) - 2)
        rates, powers = _by_length(length, rate, power)
        return rates * grown[..., None] ** powers


@dataclass(frozen=True, kw_only=True)
class LongRopeScaling:
    """LongRoPE: every channel has a divisor of its own (arXiv 2402.13753).

    `short` and `long` hold one for each pair of channels, for texts up to `original_length` tokens
    and for longer ones. Scores get the gain sqrt(1 + ln(factor) / ln(original_length)), or that of
    `attention_factor`.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    factor: float
    original_length: int
    attention_factor: float = 0.0  # 0: by the formula

    def __post_init__(self) -> None:
        check_numbers(self, "factor", "original_length")
        check_numbers(self, "attention_factor", zero=True)
        _check_factors("short", *self.short)
        _check_factors("long", *self.long)
        if self.original_length < 2:
            raise InputError(f"original_length is {self.original_length}; it must be at least 2")

    @property
    def gain(self) -> float:
        """On queries and keys alike."""
        if self.attention_factor or self.factor <= 1:
            return self.attention_factor or 1.0
        return math.sqrt(1 + math.log(self.factor) / math.log(self.original_length))

    def slowed(self, rate: np.ndarray) -> np.ndarray:
        return rate / np.asarray(self.short)

    def at_length(self, rate: np.ndarray, length: Array) -> Array:
        short, long = _by_length(
            length, rate / np.asarray(self.short), rate / np.asarray(self.long)
        )
        return jnp.where((length > self.original_length)[..., None], long, short)


# `slowed` are the rates of all channels within the original length, `gain` multiplies queries and
# keys; `at_length`, where there is one, are the rates in a text of so many tokens.
RopeScaling: TypeAlias = (
    Llama3Scaling | YarnScaling | LinearScaling | DynamicScaling | LongRopeScaling
)


def varies(scaling: RopeScaling | None, length: int) -> bool:
    """Whether a position turns otherwise in some texts of up to `length` tokens than in others."""
    by_length = isinstance(scaling, DynamicScaling | LongRopeScaling)
    return by_length and length > scaling.original_length


class Rope(NamedTuple):
    """How heads turn: how many of their channels do, the first ones, and how fast."""

    width: int
    theta: float
    scaling: RopeScaling | None = None


class Rotation(NamedTuple):
    """Cosine and sine (times a gain) per position and pair, both (time, width / 2) float32, or
    (batch, time, width / 2) where rows have positions of their own.

    Of a model with several ropes there is one more axis before these, see `of_layer`.
    """

    cos: Array
    sin: Array

    def of_layer(self, rope: Array | None) -> "Rotation":
        """That of the rope with this number () int32; the only one if None."""
        return self if rope is None else Rotation(self.cos[rope], self.sin[rope])


def frequencies(width: int, theta: float, scaling: RopeScaling | None = None) -> np.ndarray:
    """Radians per position of each channel pair, (width / 2,) float64; of texts that are no longer
    than those the model was made for."""
    rate = theta ** (-np.arange(0, width, 2) / width)
    return rate if scaling is None else scaling.slowed(rate)


def rotation(time: int, width: int, theta: float, scaling: RopeScaling | None = None) -> Rotation:
    """The rotations of positions 0 .. time - 1 of a text of `time` tokens."""
    return rotation_at(jnp.arange(time, dtype=jnp.float32), jnp.int32(time), width, theta, scaling)


def rotation_at(
    place: Array, length: Array, width: int, theta: float, scaling: RopeScaling | None = None
) -> Rotation:
    """The rotations of any positions (time,) in texts of so many tokens, () or (time,) int32."""
    if isinstance(scaling, DynamicScaling | LongRopeScaling):
        rate = scaling.at_length(frequencies(width, theta), length)
        rate = rate if rate.ndim == 2 else rate[None, :]
    else:
        rate = jnp.asarray(frequencies(width, theta, scaling), jnp.float32)[None, :]
    angle = place.astype(jnp.float32)[:, None] * rate
    gain = np.float32(1.0 if scaling is None else scaling.gain)
    return Rotation(jnp.cos(angle) * gain, jnp.sin(angle) * gain)


def rotations(ropes: tuple[Rope | None, ...], place: Array, length: Array) -> Rotation:
    """Those of a model with these ropes, None for heads that do not turn; see `rotation_at`."""
    width = max(2, *(rope.width for rope in ropes if rope is not None), 2)
    still = lambda: Rotation(*(jnp.full((len(place), width // 2), x, jnp.float32) for x in (1, 0)))
    each = [still() if rope is None else rotation_at(place, length, *rope) for rope in ropes]
    return each[0] if len(each) == 1 else Rotation(*map(jnp.stack, zip(*each, strict=True)))


def rotate(x_BTHK: Array, turn: Rotation) -> Array:
    """Turn the pairs of every head; computed in float32, returned in the type of x.

    Channels beyond those that turn stay as they are.
    """
    cos, sin = ((y[None] if y.ndim == 2 else y)[:, :, None, :] for y in (turn.cos, turn.sin))
    turns = 2 * cos.shape[-1]
    x = x_BTHK[..., :turns].astype(jnp.float32)
    a, b = jnp.split(x, 2, axis=-1)
    y = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTHK.dtype)
    if turns == x_BTHK.shape[-1]:
        return y
    return jnp.concatenate([y, x_BTHK[..., turns:]], axis=-1)
