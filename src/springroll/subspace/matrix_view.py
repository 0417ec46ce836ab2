"""Which parameters are projected, and how each is seen as a stack of matrices (in, out)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import jax.numpy as jnp
from jax import Array

from springroll.errors import InputError, suggestion
from springroll.thin.roles import WeightRole
from springroll.trees import PyTree, Select, named_leaves, selector

Side = Literal["in", "out", "std", "reverse_std", "left", "right", "full"]
Rows = Literal["in", "out"]


@dataclass(frozen=True)
class MatrixView:
    """A parameter as (*stack, m, n): m sums over its inputs, n over its outputs."""

    path: str
    shape: tuple[int, ...]
    roles: str  # one letter per axis: s stacked, m input, n output
    number: int  # among the projected parameters, in tree order

    @property
    def stack(self) -> tuple[int, ...]:
        return tuple(n for n, role in zip(self.shape, self.roles, strict=True) if role == "s")

    def size(self, role: str) -> int:
        return math.prod(n for n, r in zip(self.shape, self.roles, strict=True) if r == role)

    @property
    def order(self) -> tuple[int, ...]:
        """The axes of the parameter in the order stack, inputs, outputs."""
        return tuple(sorted(range(len(self.shape)), key=lambda i: "smn".index(self.roles[i])))

    def matrix(self, x: Array) -> Array:
        return x.transpose(self.order).reshape(*self.stack, self.size("m"), self.size("n"))

    def restore(self, matrix: Array) -> Array:
        """`matrix` undone."""
        order = self.order
        transposed = matrix.reshape([self.shape[i] for i in order])
        return transposed.transpose(sorted(range(len(order)), key=order.__getitem__))

    def sides(self, side: Side) -> tuple[bool, bool]:
        """Whether the inputs and whether the outputs are projected.

        "std" is the smaller of the two, the inputs when they are equal; "left" is the one that
        comes first in the parameter's own layout.
        """
        m, n = self.size("m"), self.size("n")
        inputs = {
            "in": True,
            "full": True,
            "out": False,
            "std": m <= n,
            "reverse_std": m > n,
            "left": self.roles.index("m") < self.roles.index("n"),
            "right": self.roles.index("m") > self.roles.index("n"),
        }[side]
        return inputs, not inputs or side == "full"

    def turning(self, side: Side) -> tuple[int, ...]:
        """The axes of a low-rank gradient (..., m, n) that are coordinates in a basis."""
        return tuple(axis for axis, on in zip((-2, -1), self.sides(side), strict=True) if on)


def matrix_views(
    params: PyTree,
    *,
    select: Select = None,
    roles: Mapping[str, WeightRole] | None = None,
    rows: Rows = "in",
) -> list[MatrixView | None]:
    """A view per leaf of `params` in tree order; None for those that stay as they are.

    Without `roles` the last two axes are the matrix, its rows the inputs or, with rows="out", the
    outputs. A parameter that lacks the first, stacked axis of its role is one layer by itself.

    Raises InputError for a selected vector, for a pattern that matches nothing and for roles of
    other parameters. A tree without leaves has no views.
    """
    leaves = named_leaves(params)
    shapes = {path: tuple(jnp.shape(leaf)) for path, leaf in leaves.items()}
    dtypes = {path: jnp.result_type(leaf) for path, leaf in leaves.items()}
    selected = selector(select, list(shapes))
    views: list[MatrixView | None] = []
    for path, shape in shapes.items():
        letters = _letters(path, shape, roles, "mn" if rows == "in" else "nm")
        if not (selected(path) if selected else letters):
            views.append(None)
            continue
        if not letters:
            raise InputError(
                f"{path} {list(shape)} is selected but has no matrix to project; "
                f"leave it out of select"
            )
        if jnp.issubdtype(dtypes[path], jnp.complexfloating):
            raise InputError(
                f"{path} is {dtypes[path]}; gradients are projected as real numbers: leave it out"
                " with select, or keep real and imaginary part as two parameters"
            )
        views.append(MatrixView(path, shape, letters, sum(v is not None for v in views)))
    if shapes and not any(views) and select is None:
        raise InputError("no parameter is projected: none is a matrix; give select or roles")
    return views


def one_of(value: str, known: object, name: str) -> None:
    """Raise InputError unless `value` is among the values of the Literal `known`."""
    names = get_args(known)
    if value not in names:
        hint = suggestion(str(value), names, quoted=True)
        raise InputError(f"{name} is {value!r}; expected one of {', '.join(names)}{hint}")


def _letters(
    path: str, shape: tuple[int, ...], roles: Mapping[str, WeightRole] | None, matrix: str
) -> str:
    """A letter per axis; none for what is not a matrix."""
    if roles is None:
        return "s" * (len(shape) - 2) + matrix if len(shape) >= 2 else ""
    leaf = roles.get(path) or roles.get(f"{path}/value")  # of an nnx.State
    if leaf is not None and leaf.shape == shape:
        return leaf.roles or ""
    if leaf is not None and leaf.shape[1:] == shape and (leaf.roles or "s")[0] == "s":
        return (leaf.roles or "")[1:]
    known = f"{list(leaf.shape)} there" if leaf else "no such path"
    raise InputError(
        f"{path} {list(shape)} is not in the roles ({known}); call sr.discover on these params"
    )
