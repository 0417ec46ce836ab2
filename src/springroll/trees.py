"""Pytrees of arrays: leaves by their paths, sizes, and the one squared norm."""

import dataclasses
import fnmatch
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from springroll.errors import InputError, check_takes, expect, nearest

PyTree: TypeAlias = Any
"""Any nesting of tuples, lists, dicts and registered classes; parameters, states, batches."""
Params: TypeAlias = dict[str, Any]
"""The parameters of a model: a dictionary of arrays and of further dictionaries."""
KeyPath: TypeAlias = tuple[Any, ...]
"""What `jax.tree_util` calls a leaf's path: one key for each level."""
Metrics: TypeAlias = dict[str, Array]
"""Scalars of a step by name, left on the device until they are logged."""
Select: TypeAlias = Callable[[str], bool] | str | Sequence[str] | None
"""Which parameters, by path: a function, a pattern ("layers/*_proj"), several, or the default."""


def path_of(path: KeyPath) -> str:
    """A leaf's path as it is written everywhere: its keys joined by "/".

    >>> jax.tree.map_with_path(lambda path, _: path_of(path), {"mlp": [1, 2]})
    {'mlp': ['mlp/0', 'mlp/1']}
    """
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """The leaves of a tree by their paths, in the order of `jax.tree.leaves`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return {path_of(path): leaf for path, leaf in leaves}


def map_named(
    function: Callable[..., Any],
    tree: PyTree,
    *rest: PyTree,
    is_leaf: Callable[[Any], bool] | None = None,
) -> PyTree:
    """`function(path, leaf, *others)` in the place of every leaf; paths are those of `path_of`."""
    named = lambda path, *leaves: function(path_of(path), *leaves)
    return jax.tree_util.tree_map_with_path(named, tree, *rest, is_leaf=is_leaf)


def selector(select: Select, paths: Sequence[str]) -> Callable[[str], bool] | None:
    """path -> whether it is selected; None for the default.

    Raises:
        InputError: a pattern that matches none of `paths`.
    """
    if select is None:
        return select
    if callable(select):
        check_takes(select, "select", "a path")
        return select
    listed = isinstance(select, Collection) and all(isinstance(each, str) for each in select)
    expect(listed, "select", select, "a pattern on paths, several, or a function of a path")
    patterns = [select] if isinstance(select, str) else list(select)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(path, pattern) for path in paths):
            near = nearest(pattern, paths, cutoff=0.0)
            hint = f"; the nearest is {near!r}" if near else ""
            raise InputError(f"select pattern {pattern!r} matches no parameter{hint}")
    return lambda path: any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def check_arrays(params: PyTree) -> None:
    """Raise InputError unless every leaf of the parameters is an array or a number."""
    for path, leaf in named_leaves(params).items():
        if not hasattr(leaf, "dtype") and not isinstance(leaf, int | float | complex):
            name = getattr(leaf, "__name__", type(leaf).__name__)
            raise InputError(
                f"{path or 'params'} is no array but {name!r}; give arrays alone: of a module with"
                " other fields eqx.filter(model, eqx.is_array), nnx.state(model, nnx.Param) or "
                "the like"
            )


def is_none(x: PyTree) -> bool:
    """For `is_leaf`: None in place of an array."""
    return x is None


def is_numeric(x: PyTree) -> bool:
    """Whether JAX takes it for an array: a number, an array, or what is made one."""
    numbers = (Array, np.ndarray, np.generic, bool, int, float, complex)
    return isinstance(x, (*numbers, jax.ShapeDtypeStruct)) or hasattr(x, "__jax_array__")


def tree_bytes(tree: PyTree) -> int:
    """Bytes of all arrays (or `jax.ShapeDtypeStruct`s) of a tree."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def tree_numbers(tree: PyTree) -> int:
    """How many numbers all arrays of a tree hold together."""
    return sum(x.size for x in jax.tree.leaves(tree))


def squared_norm(tree: PyTree) -> Array:
    """The sum of the squares of all numbers of a tree, () float32, leaf by leaf in float32."""
    squares = (jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree))
    return sum(squares, jnp.zeros((), jnp.float32))


Class = TypeVar("Class", bound=type)


def tree_dataclass(
    *, static: Sequence[str] = (), saved_as: Mapping[str, str] | None = None
) -> Callable[[Class], Class]:
    """Class decorator: the instances of a frozen dataclass are pytrees.

    Args:
        static: Fields that are no arrays but belong to the structure; they are hashable.
        saved_as: Field -> the name that its leaves have in paths, and so in checkpoints, where that
            is not the name of the field.

    >>> from dataclasses import dataclass
    >>> @tree_dataclass(static=["unit"], saved_as={"length": "size"})
    ... @dataclass(frozen=True)
    ... class Stick:
    ...     length: float
    ...     unit: str
    >>> named_leaves(Stick(2.0, "m"))
    {'size': 2.0}
    """
    names = saved_as or {}

    def decorate(cls: Class) -> Class:
        fields = [field.name for field in dataclasses.fields(cls)]
        arrays = [name for name in fields if name not in static]
        keys = [jax.tree_util.GetAttrKey(names.get(name, name)) for name in arrays]
        fixed = lambda value: tuple(getattr(value, name) for name in static)
        leaves = lambda value: [getattr(value, name) for name in arrays]

        def build(fixed: tuple[Any, ...], leaves: Iterable[Any]) -> Any:
            instance = object.__new__(cls)
            for name, value in (
                *zip(arrays, leaves, strict=True),
                *zip(static, fixed, strict=True),
            ):
                object.__setattr__(instance, name, value)
            return instance

        jax.tree_util.register_pytree_with_keys(
            cls,
            lambda value: (list(zip(keys, leaves(value), strict=True)), fixed(value)),
            build,
            lambda value: (leaves(value), fixed(value)),
        )
        return serializable(cls, arrays)

    return decorate


_UNKNOWN_TO_FLAX: dict[type, Sequence[str]] = {}


def serializable(cls: Class, fields: Sequence[str]) -> Class:
    """The dataclass, whose instances flax.serialization will store by these fields.

    `known_to_flax` tells flax, which need not be installed.
    """
    _UNKNOWN_TO_FLAX[cls] = fields
    return cls


def known_to_flax() -> None:
    """Register what is `serializable`, if flax.serialization is loaded and was not told yet.

    Whatever makes an instance calls this. Without it `to_bytes` would take the instance for an
    array and fail.
    """
    flax = sys.modules.get("flax.serialization")
    while flax is not None and _UNKNOWN_TO_FLAX:
        cls, fields = _UNKNOWN_TO_FLAX.popitem()
        flax.register_serialization_state(cls, *_state_dicts(flax, fields), override=True)


def _state_dicts(flax: Any, fields: Sequence[str]) -> tuple[Callable[..., Any], ...]:
    def to_dict(value: Any) -> dict[str, Any]:
        return {name: flax.to_state_dict(getattr(value, name)) for name in fields}

    def from_dict(target: Any, stored: Mapping[str, Any]) -> Any:
        if set(stored) != set(fields):
            raise InputError(
                f"a stored {type(target).__name__} has {', '.join(sorted(stored))}; expected "
                f"{', '.join(sorted(fields))}"
            )
        restore = lambda name: flax.from_state_dict(getattr(target, name), stored[name], name=name)
        return dataclasses.replace(target, **{name: restore(name) for name in fields})

    return to_dict, from_dict


def real_cotangents(tree: PyTree) -> PyTree:
    """Cotangents with None in place of those of integers, which no program can return."""
    return jax.tree.map(lambda d: None if d.dtype == jax.dtypes.float0 else d, tree)


def whole_cotangents(values: PyTree, real: PyTree) -> PyTree:
    """The inverse: zeros, of the type that integers have for a cotangent, where there is None."""

    def zero(x: Array) -> Array | np.ndarray:
        if jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.zeros_like(x)
        return np.zeros(x.shape, jax.dtypes.float0)

    leaves, tree = jax.tree.flatten(values)
    given = tree.flatten_up_to(real)
    filled = [zero(x) if d is None else d for x, d in zip(leaves, given, strict=True)]
    return tree.unflatten(filled)
