"""When a projector is renewed, from what, and what happens to the moments.

One loop per parameter over the matrices of its stack that are due, with a trip count known at run
time: nothing is computed on other steps, and the program does not grow with the stack.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from springroll.errors import InputError
from springroll.lowgrad.inner_state import decode, encode
from springroll.lowgrad.matrix_view import MatrixView, Side, one_of
from springroll.lowgrad.projector import Projector, carry_over
from springroll.lowgrad.subspace import Moments, Order, power_step, random_basis, svd_basis

Refresh = Literal["power", "svd", "random"]


@dataclass(frozen=True)
class Subspace:
    """The choices that make a projector.

    Raises InputError for a rank or gap below one and for names that do not exist.
    """

    rank: int
    update_gap: int = 200  # steps from one refresh of a matrix to its next
    side: Side = "in"
    refresh: Refresh = "power"
    moments: Moments = "rotate"
    stagger: bool = True  # matrices take turns instead of all being refreshed on one step
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("rank", self.rank), ("update_gap", self.update_gap)):
            if value < 1:
                raise InputError(f"{name} is {value}; expected an integer of at least 1")
        one_of(self.side, Side, "side")
        one_of(self.refresh, Refresh, "refresh")
        one_of(self.moments, Moments, "moments")

    def low_shape(self, view: MatrixView) -> tuple[int, ...]:
        """The shape of the low-rank gradient."""
        left, right = view.sides(self.side)
        m, n = view.size("m"), view.size("n")
        return (*view.stack, self.rank if left else m, self.rank if right else n)

    def key(self, view: MatrixView) -> Array:
        """A typed key that depends on the seed and the path only."""
        digest = hashlib.blake2b(view.path.encode(), digest_size=4).digest()
        return jax.random.fold_in(jax.random.key(self.seed), int.from_bytes(digest, "little"))

    def start(self, view: MatrixView) -> Projector:
        """Random bases, from which the first gradient already takes a power step."""
        left, right = view.sides(self.side)
        both = jax.random.split(self.key(view))
        shape = lambda role: (*view.stack, view.size(role), self.rank)
        return Projector(
            random_basis(both[0], shape("m")) if left else None,
            random_basis(both[1], shape("n")) if right else None,
        )


class Turn(NamedTuple):
    """The matrices of a stack that are due: `first`, `first + stride`, ..., `several` of them."""

    first: Array
    stride: Array
    several: Array


def turn(subspace: Subspace, view: MatrixView, views: int, step: Array, layer: Array | int) -> Turn:
    """Whose turn it is at `step`: on the first step everybody's.

    Afterwards each matrix is due every `update_gap` steps. With `stagger`, matrix j of a stack,
    counted from `layer` times the stack's size, is due j steps after matrix 0, and the `views`
    projected parameters are spread evenly over the gap.
    """
    gap, matrices = subspace.update_gap, math.prod(view.stack)
    zero = jnp.zeros((), jnp.int32)
    if not subspace.stagger:
        return Turn(zero, zero + 1, jnp.where(step % gap == 0, matrices, 0))
    first = jnp.mod(step - view.number * gap // views - layer * matrices, gap).astype(jnp.int32)
    several = jnp.maximum((matrices - first + gap - 1) // gap, 0)
    start = step == 0
    return Turn(
        jnp.where(start, 0, first), jnp.where(start, 1, gap), jnp.where(start, matrices, several)
    )


def renewed(
    subspace: Subspace,
    stack: tuple[int, ...],
    due: Turn,
    key: Array,
    gradient: Array,
    projector: Projector,
    kept: Sequence[tuple[Any, Order]],
) -> tuple[Projector, list[Any]]:
    """The projector and the moments after the refresh of the matrices that are due.

    `gradient` is (*stack, m, n), `kept` the moments of its low-rank gradient (coded or not) with
    their orders, `key` the randomness of this parameter and step.
    """
    orders: list[Order] = [order for _, order in kept]

    def renew(projector: Projector, leaves: list[Any]) -> tuple[Projector, list[Any]]:
        def one(k: Array, carry: tuple[Projector, list[Array]]) -> tuple[Projector, list[Array]]:
            projector, moments = carry
            j = due.first + k * due.stride
            at = jnp.unravel_index(j, stack) if stack else ()
            old = jax.tree.map(lambda x: x[at], projector)
            new = next_projector(subspace, gradient[at], old, jax.random.fold_in(key, j))
            moments = [
                x.at[at].set(carry_over(new, old, x[at], order, subspace.moments))
                for x, order in zip(moments, orders, strict=True)
            ]
            return jax.tree.map(lambda x, y: x.at[at].set(y), projector, new), moments

        moments = [decode(leaf) for leaf in leaves]
        projector, moments = lax.fori_loop(0, due.several, one, (projector, moments))
        return projector, [encode(x, y) for x, y in zip(leaves, moments, strict=True)]

    leaves = [leaf for leaf, _ in kept]
    return lax.cond(due.several > 0, renew, lambda *same: same, projector, leaves)


def next_projector(subspace: Subspace, gradient: Array, old: Projector, key: Array) -> Projector:
    """The projector of one matrix (m, n): from its gradient, or from nothing."""
    both = jax.random.split(key)

    def basis(gradient: Array, old: Array | None, key: Array) -> Array | None:
        if old is None:
            return None
        if subspace.refresh == "random":
            return random_basis(key, old.shape)
        if subspace.refresh == "svd":
            return svd_basis(gradient, subspace.rank)
        return power_step(gradient, old)

    return Projector(
        basis(gradient, old.left, both[0]),
        basis(jnp.matrix_transpose(gradient), old.right, both[1]),
    )
