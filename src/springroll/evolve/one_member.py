"""The weights of one member of a population, formed."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from springroll.errors import InputError
from springroll.evolve.arguments import check_population, fitness_of, whole_number
from springroll.evolve.members import HasParams, Members
from springroll.thin.factored_array import formed
from springroll.thin.interpreter import is_coded
from springroll.trees import PyTree


def member(state: HasParams, members: Members, index: int) -> PyTree:
    """The parameters of one member: what `fn` saw of it in `sr.evaluate`, as plain arrays.

    Costs one copy of the model. Members `2 p` and `2 p + 1` are an antithetic pair. On the integer
    lattice these are the nearest integers, while `evaluate` rounds where activations meet the
    factors, so that fitness differs a little.

    Args:
        state: The state that `members` were asked of; its `params` are what they perturb. The one
            that `tell` returns stands elsewhere.
        members: A generation's N members, as `es.ask` gives them.
        index: Which one, 0 to N - 1.

    Returns:
        A tree like `state.params`. The values of `quant.Int8` weights are float32 in it, since
        perturbations are much smaller than their steps.

    Raises:
        InputError: There is no such member.

    >>> import jax, jax.numpy as jnp
    >>> import springroll as sr
    >>> fn = lambda params, x: -jnp.sum((x @ params["w"] - 1) ** 2)
    >>> es = sr.eggroll(pop_size=8, sigma=0.1)
    >>> state = es.init(jax.random.key(0), {"w": jnp.zeros((4, 2))})
    >>> members, x = es.ask(state), jnp.ones((3, 4))
    >>> fitness = sr.evaluate(fn, state, members, x)
    >>> third = sr.member(state, members, 3)
    >>> bool(jnp.allclose(fn(third, x), fitness[3], rtol=1e-5))
    True
    """
    check_population(state, members, "sr.member(state, members, index)")
    if whole_number("index", index, 0) >= members.size:
        raise InputError(f"index is {index}; expected one of {members.size} members, from 0 on")
    pair, sign = divmod(int(index), len(members.perturbation.signs))
    return _formed(state.params, members, jnp.int32(pair), jnp.int32(sign))


def best_member(state: HasParams, members: Members, fitness: ArrayLike | Sequence[float]) -> PyTree:
    """The parameters of the member with the highest fitness; see `sr.member`.

    Args:
        state: The state that `members` were asked of, not yet told of the fitness.
        members: A generation's N members, as `es.ask` gives them.
        fitness: (N,) numbers, as `sr.evaluate` returns them; NaN and infinite ones do not count.

    Returns:
        A tree like `state.params`; of equal members the first.

    Raises:
        InputError: `fitness` is not one of N members, or no member has a finite one.

    >>> import jax, jax.numpy as jnp
    >>> import springroll as sr
    >>> fn = lambda params, x: -jnp.sum((x @ params["w"] - 1) ** 2)
    >>> es = sr.eggroll(pop_size=8, sigma=0.1)
    >>> state = es.init(jax.random.key(0), {"w": jnp.zeros((4, 2))})
    >>> members, x = es.ask(state), jnp.ones((3, 4))
    >>> fitness = sr.evaluate(fn, state, members, x)
    >>> best = sr.best_member(state, members, fitness)
    >>> bool(jnp.allclose(fn(best, x), fitness.max(), rtol=1e-5))
    True
    """
    check_population(state, members, "sr.best_member(state, members, fitness)")
    values = np.asarray(fitness_of(fitness, members.size))
    counts = np.isfinite(values.astype(np.float64))
    if not counts.any():
        raise InputError(f"none of {members.size} members has a finite fitness; there is no best")
    return member(state, members, int(np.flatnonzero(counts)[values[counts].argmax()]))


@jax.jit
def _formed(params: PyTree, members: Members, pair: Array, sign: Array) -> PyTree:
    perturbation = members.perturbation
    axes = perturbation.pair_axes()
    one = {
        path: tuple(lax.squeeze(x, [axes[path]]) for x in group)
        for path, group in members.chunk(pair, 1).drawn().items()
    }
    signs = jnp.asarray(perturbation.signs, jnp.float32)
    attached = perturbation.attach(params, one, signs[sign], members.sigma)
    return formed(attached, lambda weight: jnp.float32 if is_coded(weight) else None)
