"""When a projector is renewed, from what, and what happens to the moments.

One loop per parameter over the matrices of its stack that are due, with a trip count known at run
time: nothing is computed on other steps, and the program does not grow with the stack.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from springroll.subspace.basis import Order, orthonormal, power_step, svd_basis
from springroll.subspace.inner_state import Leaf, decode, encode
from springroll.subspace.matrix_view import MatrixView
from springroll.subspace.projection import Projection, Projector, carry_over
from springroll.subspace.stored_basis import Basis, floats, map_bases, stored_like


class Turn(NamedTuple):
    """The matrices of a stack that are due: `first`, `first + stride`, ..., `several` of them."""

    first: Array
    stride: Array
    several: Array
    base: Array | int  # the number of the stack's first matrix in the stack of all layers


def turn(
    projection: Projection, view: MatrixView, views: int, step: Array, layer: Array | int
) -> Turn:
    """Whose turn it is at `step`: on the first step everybody's.

    Afterwards each matrix is due every `refresh_interval` steps. With `stagger`, matrix j of a
    stack, counted from `layer` times the stack's size, is due j steps after matrix 0, and the
    `views` projected parameters are spread evenly over the interval.
    """
    interval, matrices = projection.interval_of(view), math.prod(view.stack)
    zero, base = jnp.zeros((), jnp.int32), layer * matrices
    if not projection.stagger:
        return Turn(zero, zero + 1, jnp.where(step % interval == 0, matrices, 0), base)
    first = jnp.mod(step - view.number * interval // views - base, interval).astype(jnp.int32)
    several = jnp.maximum((matrices - first + interval - 1) // interval, 0)
    start = step == 0
    return Turn(
        jnp.where(start, 0, first),
        jnp.where(start, 1, interval),
        jnp.where(start, matrices, several),
        base,
    )


def renewed(
    projection: Projection,
    view: MatrixView,
    due: Turn,
    step: Array,
    gradient: Array,
    projector: Projector,
    moments: Sequence[tuple[Leaf, Order]],
) -> tuple[Projector, list[Leaf]]:
    """The projector and the moments after the refresh of the matrices that are due.

    `gradient` is (*stack, m, n), `moments` those of its low-rank gradient (coded or not) with
    their orders.
    """
    orders: list[Order] = [order for _, order in moments]

    def renew(projector: Projector, leaves: list[Leaf]) -> tuple[Projector, list[Leaf]]:
        def one(k: Array, carry: tuple[Projector, list[Array]]) -> tuple[Projector, list[Array]]:
            projector, arrays = carry
            j = due.first + k * due.stride
            at = jnp.unravel_index(j, view.stack) if view.stack else ()
            old = jax.tree.map(lambda x: x[at], projector)
            if projection.refresh == "random":
                normal = projection.gaussian(view, step, (due.base + j)[None])
                drawn = lambda kept, x: stored_like(kept, orthonormal(x[0]))
                new = map_bases(drawn, old, normal)
            else:
                new = next_projector(projection, gradient[at], old)
            arrays = [
                x.at[at].set(carry_over(new, old, x[at], order, projection.moments))
                for x, order in zip(arrays, orders, strict=True)
            ]
            return jax.tree.map(lambda x, y: x.at[at].set(y), projector, new), arrays

        arrays = [decode(leaf) for leaf in leaves]
        projector, arrays = lax.fori_loop(0, due.several, one, (projector, arrays))
        return projector, [encode(x, y) for x, y in zip(leaves, arrays, strict=True)]

    leaves = [leaf for leaf, _ in moments]
    return lax.cond(due.several > 0, renew, lambda *same: same, projector, leaves)


def next_projector(projection: Projection, gradient: Array, old: Projector) -> Projector:
    """The projector of one matrix (m, n) from its gradient."""

    def basis(gradient: Array, kept: Basis | None) -> Basis | None:
        if kept is None:
            return None
        old = floats(kept)
        svd = projection.refresh == "svd"
        new = svd_basis(gradient, old.shape[-1]) if svd else power_step(gradient, old)
        return stored_like(kept, new)

    return Projector(basis(gradient, old.left), basis(jnp.matrix_transpose(gradient), old.right))
