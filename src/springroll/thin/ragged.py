"""Ragged products: rows sorted by expert, each multiplied with its expert's weight."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from springroll import compat
from springroll.thin.factored_array import Factored, wide_dtype
from springroll.thin.terms import RANK, Thin, stays_on_lattice, thin_term


def is_plain(eqn: Any) -> bool:
    """The layout of lax.ragged_dot: (rows, m) x (experts, m, n) -> (rows, n)."""
    d = eqn.params["ragged_dot_dimension_numbers"]
    return (
        tuple(map(tuple, d.dot_dimension_numbers[0])) == ((1,), (1,))
        and not any(d.dot_dimension_numbers[1])
        and list(d.lhs_ragged_dimensions) == [0]
        and list(d.rhs_group_dimensions) == [0]
    )


def ragged_thin(eqn: Any, x: Array, w: Factored, sizes: Array) -> Array | None:
    """Every row meets its own expert's factors; rows past the last group get zero."""
    if not is_plain(eqn):
        return None
    rows, m, n = 0, 1, 2
    expert = jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(x.shape[0], dtype=sizes.dtype), "right")
    beyond = (expert >= w.shape[0])[:, None]

    def own(factor: Array, axes: tuple[int, ...]) -> tuple[Array, list[int]]:
        labels = [*({1: m, 2: n}[i] for i in axes if i), RANK]
        if 0 not in axes:
            return factor, labels
        return jnp.take(factor, expert, axis=0, mode="clip"), [rows, *labels]

    left, right = own(w.left, w.axes("left")), own(w.right, w.axes("right"))
    thin = Thin(*left, *right, w.gain, w.lattice)
    if w.lattice is not None and not stays_on_lattice([rows, m], thin, [rows, n]):
        return None
    wide = wide_dtype(eqn.outvars[0].aval.dtype)
    precision = lax.Precision.HIGHEST if w.lattice is not None else eqn.params["precision"]
    term = thin_term(x, [rows, m], thin, [rows, n], dtype=wide, precision=precision)
    return jnp.where(beyond, jnp.zeros_like(term), term)


def population_ragged_dot(eqn: Any, x: Array, base: Array, sizes: Array) -> Array:
    """ragged_dot that can be vmapped over members with one shared base.

    JAX cannot batch ragged_dot over rows. The rows of all members are sorted by expert into one
    ragged product and put back, so the base is still read once for the whole population.
    """

    def plain(x: Array, base: Array, sizes: Array) -> Array:
        return compat.bind(eqn, x, base, sizes)[0]

    shared = jax.custom_batching.custom_vmap(plain)

    @shared.def_vmap
    def _(axis_size: int, batched: Any, x: Array, base: Array, sizes: Array) -> tuple[Array, bool]:
        if batched[1]:
            x, sizes = (
                v if is_batched else jnp.broadcast_to(v, (axis_size, *v.shape))
                for v, is_batched in ((x, batched[0]), (sizes, batched[2]))
            )
            return lax.map(lambda one: plain(*one), (x, base, sizes)), True
        if not batched[0] and not batched[2]:
            return plain(x, base, sizes), False
        x = x if batched[0] else jnp.broadcast_to(x, (axis_size, *x.shape))
        sizes = sizes if batched[2] else jnp.broadcast_to(sizes, (axis_size, *sizes.shape))
        return _merged(x, base, sizes), True

    def _merged(x: Array, base: Array, sizes: Array) -> Array:
        members, rows = x.shape[:2]
        ends = jnp.cumsum(sizes, axis=1)
        place = jnp.arange(rows, dtype=sizes.dtype)
        expert = jax.vmap(lambda e: jnp.searchsorted(e, place, "right"))(ends).reshape(-1)
        order = jnp.argsort(expert, stable=True)
        back = jnp.argsort(order)
        flat = x.reshape(members * rows, -1)
        out = population_ragged_dot(eqn, flat[order], base, sizes.sum(0, dtype=sizes.dtype))
        return out[back].reshape(members, rows, -1)

    # custom_vmap has no reverse mode of its own.
    @jax.custom_vjp
    def differentiable(x: Array, base: Array, sizes: Array) -> Array:
        return shared(x, base, sizes)

    def forward(x: Array, base: Array, sizes: Array) -> tuple[Array, Any]:
        return shared(x, base, sizes), (x, base, sizes)

    def backward(saved: Any, cotangent: Array) -> tuple[Array, Array, None]:
        x, base, sizes = saved
        _, pull = jax.vjp(lambda x, base: plain(x, base, sizes), x, base)
        return (*pull(cotangent), None)

    differentiable.defvjp(forward, backward)
    return differentiable(x, base, sizes)
