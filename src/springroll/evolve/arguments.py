"""What users hand to a strategy, checked where it comes in: one line for what cannot be used."""

import math
import operator
from collections.abc import Sequence
from typing import SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from springroll.errors import InputError, expect, kind_of
from springroll.trees import PyTree, is_numeric, named_leaves


def whole_number(name: str, value: int, least: int, meaning: str = "") -> int:
    """The value, an integer of at least `least`; else raises InputError."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise InputError(f"{name} is {value!r}; expected a whole number")
    number = operator.index(value)
    if number < least:
        raise InputError(f"{name} is {number}; expected {meaning or f'at least {least}'}")
    return number


def is_positive(value: PyTree) -> bool:
    """Whether it is a number above 0 that float32 holds: not 0 there, and not infinite."""
    if not is_numeric(value) or isinstance(value, bool) or np.shape(value) != ():
        return False
    with np.errstate(all="ignore"):
        number = np.asarray(value)
        return is_real(number.dtype) and 0 < float(number.astype(np.float32)) < math.inf


def is_real(dtype: np.dtype) -> bool:
    """Whether it is one of whole numbers or of floats, bfloat16 included."""
    return jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)


def check_optimizer(optimizer: optax.GradientTransformation) -> None:
    """Raise InputError for what is no optax optimizer."""
    fits = all(callable(getattr(optimizer, name, None)) for name in ("init", "update"))
    expect(fits, "optimizer", optimizer, "an optax optimizer such as optax.adam(1e-2)")


def check_key(key: Array) -> None:
    """Raise InputError for what is no key, such as parameters in its place."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    new = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ()
    raw = dtype == jnp.uint32 and shape is not None and len(shape) == 1
    if not (new or raw):
        raise InputError(
            f"init takes (key, params), and the key is {kind_of(key)}; expected one such as "
            "jax.random.key(0)"
        )


def check_state(state: PyTree, call: str) -> None:
    """Raise InputError for what is no state of a strategy; `call` is how it should be called."""
    if not all(hasattr(state, name) for name in ("params", "seed", "generation")):
        raise InputError(f"the state is {kind_of(state)}; expected what es.init returns: {call}")


def check_population(state: PyTree, members: PyTree, call: str) -> None:
    """Raise InputError for what is no state and population; `call` is how it should be called."""
    if hasattr(state, "perturbation") and hasattr(members, "params"):
        raise InputError(f"state and members are swapped; expected {call}")
    if not hasattr(state, "params"):
        raise InputError(f"the state is {kind_of(state)}; expected what es.init returns: {call}")
    if not hasattr(members, "perturbation"):
        raise InputError(
            f"the members are {kind_of(members)}; expected what es.ask returns: {call}"
        )


def check_leaves(args: tuple[PyTree, ...]) -> None:
    """Raise InputError for an argument of `fn` that holds something else than numbers."""
    for x in jax.tree.leaves(args):
        if (isinstance(x, np.ndarray) and x.dtype.kind in "OSU") or not is_numeric(x):
            where = next(path for path, leaf in named_leaves(args).items() if leaf is x)
            raise InputError(
                f"argument {where} of fn is {kind_of(x)}; expected arrays: bind other values "
                "first, once, as in functools.partial(fn, mode='train')"
            )


def fitness_of(fitness: ArrayLike | Sequence[float], size: int) -> Array:
    """Fitness (N,) of real numbers as an array; a list or a NumPy array will do, N being `size`.

    Raises:
        InputError: It is something else, or not of N members.
    """
    try:
        with jax.numpy_dtype_promotion("standard"):
            array = jnp.asarray(fitness)
    except (TypeError, ValueError, OverflowError):
        raise InputError(
            f"fitness is {kind_of(fitness)}; expected {size} numbers, one for each member"
        ) from None
    if array.shape != (size,):
        raise InputError(f"fitness has shape {list(array.shape)}; expected [{size}]")
    if array.dtype == jnp.bool_:
        return array.astype(jnp.int32)
    if not is_real(array.dtype):
        raise InputError(f"fitness is {array.dtype}; expected real numbers")
    return array
