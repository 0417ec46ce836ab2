"""From raw fitness to the weight of each member in the update.

Every shaping is a pure function (N,) -> (N,) float32. A member whose fitness is NaN or infinite has
weight zero and does not count in any mean, deviation or rank. Members `2 p` and `2 p + 1` are an
antithetic pair.

Finite fitness of any size gives finite weights, and a penalty costs those who got it only. A member
whose fitness lies further below all others than a hundred times what separates these counts as
worse than the worst of them by what separates them. Without that bound the deviation would be its
distance, and all others would weigh the same. It holds for up to a quarter of the members, and
for the differences of `pair_difference` as for fitness. Populations without such members are
shaped by the plain formulas.
"""

import operator
from collections.abc import Callable, Sequence
from typing import TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from springroll.errors import InputError, expect
from springroll.ranges import COUNT, check_number

Shaping: TypeAlias = Callable[[Array], Array]
_EPSILON = 1e-5
_FAR = 100.0  # times the range of all better members: from there on a fitness is a penalty
_BITS = 40  # numbers above 2^48 are scaled to below 2^40, so that sums of their squares are finite


def finite(fitness: Array) -> Array:
    """(N,) bool: members that count."""
    return jnp.isfinite(fitness.astype(jnp.float32))


def scale_of(values: Array) -> Array:
    """1, or the power of two that makes finite float32 values small enough to be squared."""
    most = jnp.abs(values).max(initial=0.0)
    shrink = jnp.ldexp(jnp.float32(1), _BITS - jnp.frexp(most)[1])
    return jnp.where(most > 2.0 ** (_BITS + 8), shrink, jnp.float32(1))


def without_penalties(values: Array, valid: Array, top: ArrayLike | None = None) -> Array:
    """Finite float32 values (N,) with penalties drawn up to the others, see the module.

    In ascending order v, what comes up to i is a penalty if v[i + 1] - v[i] is more than a hundred
    times the range top - v[i + 1] of all that is better, and that is not zero. `top` is the highest
    valid value unless it is given.
    """
    ordered = jnp.sort(jnp.where(valid, values, jnp.inf))
    better = ordered[1:]
    top = jnp.where(valid, values, -jnp.inf).max() if top is None else top
    spread = top - better
    few = 4 * jnp.arange(1, values.shape[0]) <= valid.sum()
    far = few & (spread > 0) & (better - ordered[:-1] > _FAR * spread)
    return jnp.maximum(values, jnp.where(far, better - spread, -jnp.inf).max(initial=-jnp.inf))


def moderate(fitness: Array) -> Array:
    """(N,) float32 fitness that formulas may square: NaN where it is not finite, see the module."""
    valid = finite(fitness)
    values = without_penalties(jnp.where(valid, fitness.astype(jnp.float32), 0.0), valid)
    lowest, highest = (
        f(jnp.where(valid, values, x)) for f, x in ((jnp.min, jnp.inf), (jnp.max, -jnp.inf))
    )
    values = jnp.where(lowest == highest, 0.0, values)  # the mean of equal numbers is a rounded one
    return jnp.where(valid, values * scale_of(jnp.where(valid, values, 0.0)), jnp.nan)


def _moments(fitness: Array) -> tuple[Array, Array, Array, Array]:
    """(values with zero where invalid, valid as float32, mean, variance) over the valid members."""
    fitness = moderate(fitness)
    valid = finite(fitness).astype(jnp.float32)
    values = jnp.where(valid > 0, fitness, 0.0)
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
    difference = _differences(pairs, both)
    most = -without_penalties(-jnp.abs(difference), both, top=0.0)
    difference = jnp.sign(difference) * most
    difference = difference * scale_of(difference)
    square = jnp.sum(difference**2) / jnp.maximum(both.sum().astype(jnp.float32), 1.0)
    scaled = difference * jnp.where(square > 0, jax.lax.rsqrt(square), 0.0)
    return jnp.stack([scaled, -scaled], axis=1).reshape(-1)


def _differences(pairs: Array, both: Array) -> Array:
    """First minus second of (P, 2), float32, 0 where not `both`: of integers exactly.

    Halves of all where one overflows.
    """
    first, second = (pairs[:, i].astype(jnp.float32) * 0.5 for i in (0, 1))
    half = jnp.where(both, first - second, 0.0)
    if jnp.issubdtype(pairs.dtype, jnp.integer):
        wide = pairs if pairs.dtype == jnp.int64 else pairs.astype(jnp.int32)
        exact = (wide[:, 0] - wide[:, 1]).astype(jnp.float32)
        return jnp.where(both & (jnp.abs(half) < 2.0**29), exact, 2.0 * half)
    exact = jnp.where(both, (pairs[:, 0] - pairs[:, 1]).astype(jnp.float32), 0.0)
    return jnp.where(jnp.isfinite(exact).all(), exact, half)


def group_centred(group: int | ArrayLike | Sequence[int]) -> Shaping:
    """Subtract the mean of each member's group, divide by the deviation of the whole population.

    Members that answered the same question form a group, so that its difficulty cancels.

    Args:
        group: The number of consecutive members in a group, or an (N,) integer vector of group
            numbers below N.

    Returns:
        The shaping. It raises InputError for groups that do not fit the members.

    Raises:
        InputError: it is neither a whole number of at least 1 nor an array of whole numbers.
    """
    count = 0  # members in a group; 0: each has its number
    if isinstance(group, Sequence) or np.ndim(group):
        dtype = np.asarray(group).dtype if isinstance(group, Sequence) else jnp.result_type(group)
        integers = jnp.issubdtype(dtype, jnp.integer)
        expect(integers, "group", group, "a whole number, or one for each member")
    else:
        check_number("group", group, int, COUNT)
        count = operator.index(cast(int, group))

    def shape(fitness: Array) -> Array:
        size = fitness.shape[0]
        if count:
            if size % count:
                raise InputError(f"groups of {count} do not divide {size} members")
            ids = jnp.arange(size) // count
        else:
            ids = jnp.asarray(group)
            if ids.shape != (size,):
                raise InputError(f"group has shape {list(ids.shape)}; expected [{size}]")
            if not isinstance(group, Tracer):
                low, high = np.min(np.asarray(group)), np.max(np.asarray(group))
                if low < 0 or high >= size:
                    raise InputError(f"group numbers are {low} to {high}; expected 0 to {size - 1}")
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
