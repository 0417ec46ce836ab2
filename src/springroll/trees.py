"""Pytrees of arrays: leaves by their paths, sizes, and the one squared norm."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

PyTree: TypeAlias = Any
"""Any nesting of tuples, lists, dicts and registered classes; parameters, states, batches."""
Params: TypeAlias = dict[str, Any]
"""The parameters of a model: a dictionary of arrays and of further dictionaries."""
KeyPath: TypeAlias = tuple[Any, ...]
"""What `jax.tree_util` calls a leaf's path: one key for each level."""
Metrics: TypeAlias = dict[str, Array]
"""Scalars of a step by name, left on the device until they are logged."""


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
        return cls

    return decorate
