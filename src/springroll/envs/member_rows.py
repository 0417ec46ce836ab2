"""Members that sit side by side for as long as their episodes last.

A seat is a pair, and its rows are the pair's members, or some of them: they meet the same factors,
which are read once for all. What does not change from step to step is made once: factors are
gathered or drawn, and weights with full noise are formed. Thin terms are not.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from springroll.evolve.members import Members
from springroll.evolve.perturbation import Kind, Perturbation, path_of
from springroll.thin.transform import factored


class Seated(NamedTuple):
    """The members of some seats."""

    sign: Array  # (seats, rows of a seat)
    factors: Any  # of the low-rank parameters, with an axis of seats
    params: Any  # the parameters; those with full noise formed, with the axes of sign in front


def seated(params: Any, members: Members, pair: Array, sign: Array) -> Seated:
    """Who sits where.

    Args:
        params: what `members` perturb.
        pair: (seats,) int32, which may repeat.
        sign: (seats, rows of a seat) float32.
    """
    perturbation = members.perturbation
    axes, dense = perturbation.pair_axes(), _of_kind(perturbation, "dense")
    if members.factors is None:
        factors = perturbation.draw(members.seed, members.epoch, members.pairs[pair])
    else:
        factors = {
            path: tuple(jnp.take(x, pair, axis=axes[path]) for x in group)
            for path, group in members.factors.items()
        }
    full = {leaf.path: factors.pop(leaf.path) for leaf in dense.evolved}
    types = {path_of(path): x.dtype for path, x in jax.tree_util.tree_leaves_with_path(params)}
    laid = lambda path, x: jnp.moveaxis(x, -1, axes[path] + 1).astype(types[path])
    factors = {path: tuple(laid(path, x) for x in group) for path, group in factors.items()}

    def formed(sign: Array, full: Any) -> dict[str, Array]:
        attached = dense.attach(params, full, sign, members.sigma)
        found = jax.tree_util.tree_leaves_with_path(attached)
        return {path_of(path): x for path, x in found if path_of(path) in full}

    each = jax.vmap(jax.vmap(formed, in_axes=(0, None)), in_axes=(0, dense.pair_axes()))
    rows = each(sign, full) if full else {}
    whole = lambda path, x: rows.get(path_of(path), x)
    return Seated(sign, factors, jax.tree_util.tree_map_with_path(whole, params))


def each_seat(
    fn: Callable[..., Any], perturbation: Perturbation, sigma: Array, seats: Seated, *rows: Any
) -> Any:
    """`fn(member's params, *row)` for every row; `rows` lead with (seats, rows of a seat)."""
    thin, low = factored(fn), _of_kind(perturbation, "low-rank")
    dense = {leaf.path for leaf in _of_kind(perturbation, "dense").evolved}
    axes = low.pair_axes()

    def one(seat: Seated, *row: Any) -> Any:
        factors = {
            path: tuple(jnp.moveaxis(x, axes[path], -1) for x in group)
            for path, group in seat.factors.items()
        }
        return thin(low.attach(seat.params, factors, seat.sign, sigma), *row)

    by_row = lambda path, _: 0 if path_of(path) in dense else None
    params = jax.tree_util.tree_map_with_path(by_row, seats.params)
    of_rows = [0 for _ in rows]
    each = jax.vmap(one, in_axes=(Seated(0, None, params), *of_rows))  # type: ignore[arg-type]
    each = jax.vmap(each, in_axes=(Seated(0, axes, params), *of_rows))  # type: ignore[arg-type]
    return each(seats, *rows)


def _of_kind(perturbation: Perturbation, kind: Kind) -> Perturbation:
    """The same for the parameters of one kind, with the others at rest."""
    still = lambda leaf: leaf if leaf.kind == kind else replace(leaf, kind="frozen")
    return replace(perturbation, leaves=tuple(still(leaf) for leaf in perturbation.leaves))
