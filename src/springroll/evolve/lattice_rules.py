"""How votes move int8 weights: rules of integers only, so that a run is the same on any hardware.

A rule sees the votes of one parameter in z units: Z = sum_p F_p left_p right_p has, when the
fitness knows nothing, standard deviation `noise` * sqrt(pairs); z = Z / that. To add a rule, write
`init` and `move` and put one line in `RULES`.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from springroll.errors import InputError
from springroll.quant.fixed_point import shift_right
from springroll.trees import PyTree


class Rule(NamedTuple):
    """One parameter's optimizer, in integers only.

    `init(weight) -> memory` and `move(votes, memory, step) -> (move, memory)`; `step` is the
    generation, the move int32 in steps of the lattice (sixteenths).
    """

    init: Callable[[Array], PyTree]
    move: Callable[["Votes", PyTree, Array], tuple[Array, PyTree]]
    blind: bool = False  # moves the weights even if no pair of the generation voted


class Votes(NamedTuple):
    """What the pairs of one generation say about one parameter."""

    total: Array  # Z, int32 in the weight's shape
    noise: float  # standard deviation of one pair's term: 256 for a rank-1 product, 16 for a vector
    pairs: int

    def in_units(self, bits: int) -> Array:
        """z * 2**bits as int32, clipped to +-8 * 2**bits; the scale is an integer ratio."""
        ratio = 2.0**bits / (self.noise * math.sqrt(self.pairs))
        # A multiplier of at most 10 bits; of fewer for 2^20 pairs and more, to reach z = 8 still.
        down = min(max(0, 10 - math.ceil(math.log2(ratio))), 15)
        multiplier = round(ratio * 2**down)
        most = (1 << 30) // max(multiplier, 1)  # beyond it z is far outside the clip anyway
        scaled = shift_right(jnp.clip(self.total, -most, most) * multiplier, down)
        return jnp.clip(scaled, -(8 << bits), 8 << bits)


_Z_BITS = 12  # of fraction in z and in its moving average: int16 holds +-8
_RESIDUAL_BITS = 15  # of fraction in what was not yet applied: int16 holds +-1/2 and a little more


def residual(*, lr: float = 0.1, momentum: float = 0.9, decay: float = 1000.0) -> Rule:
    """Momentum on the votes, and the part of a move that is below one step kept for later.

        m <- momentum m + (1 - momentum) z
        r <- r + lr_t m / std(m),   move = round(r),   r <- r - move,   lr_t = lr / (1 + t / decay)

    where std(m) is that of a moving average of pure noise, so a parameter without a gradient walks
    lr steps (sixteenths) per generation, and one with a steady gradient up to sqrt((1 + b) / (1 -
    b)) times as far. m and r are int16: four bytes per weight. Ours; the paper leaves optimizer
    states for integer training to future work.
    """
    if not 0 <= momentum < 1 or not lr > 0 or not decay > 0:
        raise InputError(
            f"momentum is {momentum}, lr {lr}, decay {decay}; expected 0 <= momentum < 1, lr > 0 "
            "and decay > 0"
        )
    keep = round(256 * (1 - momentum)) or 1
    beta = 1 - keep / 256
    gain = lr * math.sqrt((1 + beta) / (1 - beta)) * 2 ** (_RESIDUAL_BITS - _Z_BITS)
    rate = round(gain * 1024)  # of the residual's units per unit of m, with 10 more bits
    if rate >> 15:
        raise InputError(
            f"lr is {lr} with momentum {momentum}; the integers of this rule hold an lr of at most "
            f"{lr * (1 << 15) / rate:.3g} there"
        )
    horizon = min(max(1, round(decay)), (1 << 30) // max(rate, 1))

    def init(weight: Array) -> PyTree:
        return jnp.zeros(weight.shape, jnp.int16), jnp.zeros(weight.shape, jnp.int16)

    def move(votes: Votes, memory: PyTree, step: Array) -> tuple[Array, PyTree]:
        m, r = (x.astype(jnp.int32) for x in memory)
        m = m + shift_right((votes.in_units(_Z_BITS) - m) * keep, 8)
        m = lax.optimization_barrier(jnp.clip(m, -32767, 32767).astype(jnp.int16))
        rate_now = (rate * horizon) // (horizon + jnp.minimum(step, 1 << 20))
        r = r + shift_right(m.astype(jnp.int32) * rate_now, 10)
        steps = shift_right(r, _RESIDUAL_BITS)
        left = jnp.clip(r - (steps << _RESIDUAL_BITS), -32767, 32767)
        return steps, (m, left.astype(jnp.int16))

    return Rule(init, move)


def threshold(*, alpha: float = 4.0, decay: float = 1000.0) -> Rule:
    """The published rule (App. H) without its bias: one step along sign(Z) where |Z| is large.

    About alpha_t = 1 / ((2**alpha - 1) t / decay + 1) of the parameters move per generation.
    Nothing moves where Z = 0.
    """
    return _threshold(alpha, decay, move_ties=False)


def published(*, alpha: float = 4.0, decay: float = 1000.0) -> Rule:
    """The published rule as its code runs: while the threshold is 0, Z = 0 counts as negative."""
    return _threshold(alpha, decay, move_ties=True)


def _threshold(alpha: float, decay: float, *, move_ties: bool) -> Rule:
    if not alpha > 0 or not decay > 0:
        raise InputError(f"alpha is {alpha} and decay {decay}; both must be positive")

    def move(votes: Votes, memory: PyTree, step: Array) -> tuple[Array, PyTree]:
        z, level = votes.total, published_level(step, alpha, decay)
        # |Z| * 16 >= level * isqrt(pairs) * noise, and noise a multiple of 16
        least = level * (math.isqrt(votes.pairs) * round(votes.noise / 16))
        enough = jnp.abs(z) >= least
        direction = jnp.where(z > 0, 1, -1) if move_ties else jnp.sign(z)
        return jnp.where(enough, direction, 0).astype(jnp.int32), memory

    return Rule(lambda weight: (), move, blind=move_ties)


def published_level(step: Array, alpha: float, decay: float) -> Array:
    """16 Phi^-1(1 - alpha_t / 2) cut to an integer, for generation `step`.

    It only grows, so it is the number of levels reached, each from a generation on that is known in
    advance: no float takes part, and it is exact where float32 is not (alpha_t below 1e-3).
    """
    return jnp.searchsorted(_levels_from(alpha, decay), step, side="right").astype(jnp.int32)


@functools.cache
def _levels_from(alpha: float, decay: float) -> np.ndarray:
    """The generations in which levels 1, 2, ... are reached: alpha_t = 2 (1 - Phi(level / 16))."""
    first = []
    for k in itertools.count(1):
        fraction = math.erfc(k / 16 / math.sqrt(2))
        step = math.ceil(decay * (1 / fraction - 1) / (2.0**alpha - 1)) if fraction else 1 << 31
        if step >= 1 << 31:
            return np.array(first, np.int32)
        first.append(step)
    raise AssertionError("unreachable")


RULES: dict[str, Callable[..., Rule]] = {
    "residual": residual,
    "threshold": threshold,
    "published": published,
}
