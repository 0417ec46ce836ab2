"""From raw fitness to the weight of each member in the update.

Every shaping is a pure function (N,) -> (N,) float32. A member whose fitness is NaN or infinite has
weight zero and does not count in any mean, deviation or rank. Members `2 p` and `2 p + 1` are an
antithetic pair.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from springroll.errors import InputError

Shaping: TypeAlias = Callable[[Array], Array]
_EPSILON = 1e-5


def finite(fitness: Array) -> Array:
    """(N,) bool: members that count."""
    return jnp.isfinite(fitness.astype(jnp.float32))


def _moments(fitness: Array) -> tuple[Array, Array, Array, Array]:
    """(values with zero where invalid, valid as float32, mean, variance) over the valid members."""
    valid = finite(fitness).astype(jnp.float32)
    values = jnp.where(valid > 0, fitness.astype(jnp.float32), 0.0)
    count = jnp.maximum(valid.sum(), 1.0)
    mean = values.sum() / count
    variance = (valid * (values - mean) ** 2).sum() / count
    return values, valid, mean, variance


def z_score(fitness: Array) -> Array:
    """`(f - mean) / sqrt(var + 1e-5)` over the population (paper, section 4)."""
    values, valid, mean, variance = _moments(fitness)
    return valid * (values - mean) * jax.lax.rsqrt(variance + _EPSILON)


def centred_ranks(fitness: Array) -> Array:
    """Ranks mapped to [-1/2, 1/2], ties sharing their mean rank: blind to the scale of fitness."""
    valid = finite(fitness)
    values = jnp.where(valid, fitness.astype(jnp.float32), jnp.inf)
    ordered = jnp.sort(values)
    below = jnp.searchsorted(ordered, values, side="left")
    upto = jnp.searchsorted(ordered, values, side="right")
    rank = (below + upto - 1).astype(jnp.float32) / 2
    count = valid.sum().astype(jnp.float32)
    middle = jnp.where(count > 1, 0.5, 0.0)
    return jnp.where(valid, rank / jnp.maximum(count - 1, 1.0) - middle, 0.0)


def pair_votes(fitness: Array) -> Array:
    """(P,) int32 in {-1, 0, 1}: which member of each antithetic pair did better (paper, App. G)."""
    pairs = _in_pairs(fitness)
    both = finite(pairs).all(axis=1)
    wins = (pairs[:, 0] > pairs[:, 1]).astype(jnp.int32)
    losses = (pairs[:, 0] < pairs[:, 1]).astype(jnp.int32)
    return jnp.where(both, wins - losses, 0)


def _in_pairs(fitness: Array) -> Array:
    if fitness.shape[0] % 2:
        raise InputError(f"{fitness.shape[0]} members do not form pairs; expected an even number")
    return fitness.reshape(-1, 2)


def pair_sign(fitness: Array) -> Array:
    """+1 for the better of a pair, -1 for the worse, 0 for both if they tie or one is invalid."""
    votes = pair_votes(fitness).astype(jnp.float32)
    return jnp.stack([votes, -votes], axis=1).reshape(-1)


def pair_difference(fitness: Array) -> Array:
    """What a member has more than the other of its pair, in units of the root mean square of that.

    Like `pair_sign` blind to what a pair has in common, such as the text it read, but a clear win
    weighs more than a narrow one. A pair with an invalid member weighs nothing and does not count.
    """
    pairs = _in_pairs(fitness)
    both = finite(pairs).all(axis=1)
    difference = jnp.where(both, (pairs[:, 0] - pairs[:, 1]).astype(jnp.float32), 0.0)
    square = jnp.sum(difference**2) / jnp.maximum(both.sum().astype(jnp.float32), 1.0)
    scaled = difference * jnp.where(square > 0, jax.lax.rsqrt(square), 0.0)
    return jnp.stack([scaled, -scaled], axis=1).reshape(-1)


def group_centred(group: int | ArrayLike) -> Shaping:
    """Subtract the mean of each member's group, divide by the deviation of the whole population.

    Members that answered the same question form a group, so that its difficulty cancels.

    Args:
        group: The number of consecutive members in a group, or an (N,) integer vector of group
            numbers below N.

    Returns:
        The shaping. It raises InputError for groups that do not fit the members.
    """

    def shape(fitness: Array) -> Array:
        size = fitness.shape[0]
        if isinstance(group, int):
            if group < 1 or size % group:
                raise InputError(f"groups of {group} do not divide {size} members")
            ids = jnp.arange(size) // group
        else:
            ids = jnp.asarray(group)
            if ids.shape != (size,):
                raise InputError(f"group has shape {list(ids.shape)}; expected [{size}]")
        values, valid, _, variance = _moments(fitness)
        totals = jax.ops.segment_sum(values, ids, size)
        counts = jax.ops.segment_sum(valid, ids, size)
        means = totals / jnp.maximum(counts, 1.0)
        return valid * (values - means[ids]) * jax.lax.rsqrt(variance + _EPSILON)

    return shape


SHAPINGS: dict[str, Shaping] = {
    "z_score": z_score,
    "centred_ranks": centred_ranks,
    "pair_sign": pair_sign,
    "pair_difference": pair_difference,
}


def shaping_named(name: str) -> Shaping:
    """The shaping called `name`; raises InputError with the known names."""
    if name not in SHAPINGS:
        raise InputError(f"shaping {name!r} is unknown; expected one of {', '.join(SHAPINGS)}")
    return SHAPINGS[name]
