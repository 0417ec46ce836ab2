"""Optax transformations of our own, made so that they live in every container of parameters.

Their state is plain: named tuples, dictionaries and arrays. A `flax.nnx.State` boxes its leaves
when an optimizer is initialised and does not when it updates, so our transformations see it as
nested dictionaries of arrays, and give back updates in its form.
"""

import operator
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from springroll.errors import InputError, brief
from springroll.trees import PyTree, check_arrays, known_to_flax

CONDITIONAL = "_conditionality"  # optax's module of apply_if_finite and its kin


def transformation(
    init: Callable[[PyTree], PyTree], update: Callable[..., tuple[PyTree, PyTree]]
) -> optax.GradientTransformationExtraArgs:
    """The transformation of these two functions, on plain trees.

    Args:
        init: params -> state.
        update: (updates, state, params or None, **extra) -> (updates, state).
    """

    def plain_init(params: PyTree) -> PyTree:
        known_to_flax()
        params = plain(params)
        check_arrays(params)
        return init(params)

    def plain_update(
        updates: PyTree, state: PyTree, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        given = plain(updates)
        steps, state = update(given, state, plain(params), **extra)
        if given is not updates:
            steps = jax.tree.unflatten(jax.tree.structure(updates), jax.tree.leaves(steps))
        return steps, state

    return optax.GradientTransformationExtraArgs(plain_init, plain_update)


def wrapped(inner: Any, who: str) -> optax.GradientTransformationExtraArgs:
    """The transformation that `who` wraps, with support of extra arguments.

    Raises:
        InputError: it is none, such as a function that makes one, or arguments that were swapped.
    """
    if not callable(getattr(inner, "init", None)) or not callable(getattr(inner, "update", None)):
        raise InputError(
            f"{who} wraps an optax transformation, such as optax.adam(1e-3); it was given"
            f" {brief(inner)}"
        )
    return optax.with_extra_args_support(inner)


def plain(tree: PyTree) -> PyTree:
    """A `flax.nnx.State` as nested dictionaries, and Python's numbers as arrays; any other tree as
    it is."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is None or not isinstance(tree, nnx.State):
        numbers = [isinstance(x, int | float | complex) for x in jax.tree.leaves(tree)]
        return jax.tree.map(jnp.asarray, tree) if any(numbers) else tree

    def opened(node: Any) -> Any:
        if isinstance(node, nnx.Variable):
            return node.get_value()
        return {k: opened(v) for k, v in node.items()} if isinstance(node, Mapping) else node

    return opened(tree)


def is_placeholder(params: PyTree) -> bool:
    """Whether `optax.tree_map_params` asks `init` where a state keeps trees like the parameters.

    It gives one object without leaves for all of them.
    """
    return type(params).__name__ == "_ParamsPlaceholder"


def whole(value: Any, name: str, least: int | None = 1) -> int:
    """An option that decides on shapes, as a Python integer.

    Raises:
        InputError: no integer, one below `least`, or an array of a traced function, as
            `optax.inject_hyperparams` makes of every number.
    """
    if isinstance(value, Tracer):
        raise InputError(
            f"{name} is an array under jit, but shapes depend on it; with optax.inject_hyperparams "
            f"name it among the static arguments: static_args=({name!r},)"
        )
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or (least is not None and number < least):
        at_least = "" if least is None else f" of at least {least}"
        raise InputError(f"{name} is {value}; expected an integer{at_least}")
    return number


def number(value: ArrayLike) -> float | Array:
    """A Python number as it is; an array, as `optax.inject_hyperparams` gives it, in float32."""
    return value if isinstance(value, int | float) else jnp.asarray(value, jnp.float32)


def check_types_kept(updates: PyTree, steps: PyTree, who: str) -> None:
    """Raise InputError where steps of another type than the gradients' meet a conditional of optax.

    Its branches would differ in type, and JAX's message does not say what to do.
    """
    pairs = zip(jax.tree.leaves(updates), jax.tree.leaves(steps), strict=True)
    changed = next((g.dtype for g, s in pairs if g.dtype != s.dtype), None)
    frame = None if changed is None else sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__", "").endswith(CONDITIONAL):
            wrapper = frame.f_code.co_qualname.split(".")[0]
            raise InputError(
                f"optax.{wrapper} needs updates in the type of the gradients; those of {who} are "
                f"float32 where gradients are {changed}, so that no bit is lost: put it inside, "
                f"{who}(optax.{wrapper}(...)), or give float32 gradients"
            )
        frame = frame.f_back
