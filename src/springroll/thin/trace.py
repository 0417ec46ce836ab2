"""From a call to a jaxpr: which arguments are arrays, what they are called, and what runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from springroll import compat
from springroll.thin.factored_array import Factored


@dataclass
class Call:
    """The arguments of one call: every leaf, and which of them are traced."""

    leaves: list[Any]
    tree: Any
    paths: list[str]
    is_param: list[bool]  # leaves of the first positional argument
    traced: list[int]  # positions of arrays and Factored among the leaves

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        found, tree = jax.tree_util.tree_flatten_with_path((args, kwargs), is_leaf=is_factored)
        is_param = [path[0].idx == 0 and len(path) > 1 and path[1].idx == 0 for path, _ in found]
        paths = [
            jax.tree_util.keystr(path[2:] if first else path[1:], simple=True, separator="/")
            for (path, _), first in zip(found, is_param, strict=True)
        ]
        leaves = [leaf for _, leaf in found]
        traced = [i for i, leaf in enumerate(leaves) if is_traced(leaf)]
        return cls(leaves, tree, paths, is_param, traced)

    @property
    def arrays(self) -> list[Any]:
        return [self.leaves[i] for i in self.traced]


@dataclass
class Program:
    """A function that is traced once per structure, static values and shapes of its arguments."""

    fn: Callable[..., Any]
    flat: dict[Any, Callable[..., Any]] = field(default_factory=dict)

    def trace(self, call: Call) -> tuple[Any, Any]:
        """(closed jaxpr, output tree) of the function on the dense shapes of the arguments."""
        examples = [a.base if is_factored(a) else a for a in call.arrays]
        closed, shapes = jax.make_jaxpr(self._flat(call), return_shape=True)(*examples)
        return compat.prune(closed), jax.tree.structure(shapes)

    def _flat(self, call: Call) -> Callable[..., Any]:
        """fn of the traced leaves alone; the same object for equal static parts, so JAX caches."""
        traced = set(call.traced)
        static = [leaf for i, leaf in enumerate(call.leaves) if i not in traced]
        key = (call.tree, tuple(call.traced), tuple((type(v), repr_or_self(v)) for v in static))
        try:
            return self.flat.setdefault(key, _flatten(self.fn, call))
        except TypeError:  # an unhashable static argument: trace anew every time
            return _flatten(self.fn, call)


def _flatten(fn: Callable[..., Any], call: Call) -> Callable[..., Any]:
    statics = [None if i in set(call.traced) else leaf for i, leaf in enumerate(call.leaves)]
    tree, traced = call.tree, list(call.traced)

    @functools.wraps(fn)
    def flat(*arrays: Any) -> Any:
        leaves = list(statics)
        for i, array in zip(traced, arrays, strict=True):
            leaves[i] = array
        args, kwargs = jax.tree.unflatten(tree, leaves)
        return fn(*args, **kwargs)

    return flat


def repr_or_self(value: Any) -> Any:
    """Floats by their digits, so that 0.0 and -0.0 differ; anything else by itself."""
    return repr(value) if isinstance(value, float) else value


def is_factored(leaf: Any) -> bool:
    return isinstance(leaf, Factored)


def is_traced(leaf: Any) -> bool:
    """Arrays and Factored are traced; Python numbers, strings and callables stay as they are."""
    kinds = (Factored, jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)
    return isinstance(leaf, kinds)
