"""Calls of suites, which promote types and ranks as JAX lets them by default, and their options.

Observations of any structure as one flat vector.
"""

import contextlib
import functools
import importlib
import importlib.metadata
import inspect
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from springroll.trees import PyTree


def flat(tree: PyTree) -> Array:
    """All numbers of a pytree, float32 (size,).

    Leaves come in JAX's order: fields of a tuple or dataclass as they are declared, entries of a
    dict by name; each is read row by row.
    """
    leaves = [jnp.ravel(jnp.asarray(leaf)).astype(jnp.float32) for leaf in jax.tree.leaves(tree)]
    return leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves)


def flat_size(shapes: PyTree) -> int:
    """The length of `flat(tree)`, from a tree of arrays or of shapes of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


P = ParamSpec("P")
R = TypeVar("R")


@contextlib.contextmanager
def default_rules() -> Iterator[None]:
    """JAX's default rules, whatever the caller's are, and no warnings: what a suite is warned of is
    for its authors."""
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        warnings.catch_warnings(action="ignore"),
    ):
        yield


def foreign(function: Callable[P, R]) -> Callable[P, R]:
    """The function under `default_rules`."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with default_rules():
            return function(*args, **kwargs)

    return call


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing of what a suite prints while it is imported or draws reaches the terminal."""
    with (
        warnings.catch_warnings(action="ignore"),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        yield


def imported(module: str) -> Any:
    """A module of a suite. Suites are no dependency, so nothing is known of their types."""
    with quiet():
        return importlib.import_module(module)


def raw(key: Array) -> Array:
    """The numbers of a key: suites keep keys in their states, where arrays are easier to handle.

    The draws are the same.
    """
    return jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key


def arrays(tree: PyTree) -> PyTree:
    """The tree with Python numbers as arrays: no loop could carry their weak types."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.asarray(leaf).dtype), tree)


def version(package: str) -> str:
    """Such as "navix 0.7.4"."""
    return f"{package} {importlib.metadata.version(package)}"


def accepts(function: Callable[..., object], option: str) -> bool:
    """Whether a function has an argument of that name."""
    return option in inspect.signature(function).parameters
