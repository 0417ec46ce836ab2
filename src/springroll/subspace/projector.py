"""A projector: the bases that turn a matrix gradient into a small one, and back."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from springroll.subspace.basis import (
    Moments,
    Order,
    change_of_basis,
    rotate_moment,
)


class Projector(NamedTuple):
    """Orthonormal bases of the input side, of the output side, or of both.

    With only `left`, G (*stack, m, n) becomes PᵀG (*stack, r, n), with only `right` GQ (*stack, m,
    r), with both PᵀGQ (*stack, r, r).
    """

    left: Array | None  # P (*stack, m, r)
    right: Array | None  # Q (*stack, n, r)

    def down(self, gradient: Array) -> Array:
        """The small gradient, float32."""
        if self.left is not None:
            gradient = _product("...mr,...mn->...rn", self.left, gradient)
        if self.right is not None:
            gradient = _product("...mn,...nr->...mr", gradient, self.right)
        return gradient

    def up(self, small: Array) -> Array:
        """From the subspace back to (*stack, m, n), float32."""
        if self.left is not None:
            small = _product("...mr,...rn->...mn", self.left, small)
        if self.right is not None:
            small = _product("...mr,...nr->...mn", small, self.right)
        return small


def carry_over(new: Projector, old: Projector, moment: Array, order: Order, how: Moments) -> Array:
    """A moment of small gradients, from the coordinates of one projector to those of another."""
    if new.left is not None and old.left is not None:
        moment = rotate_moment(change_of_basis(new.left, old.left), moment, order, how)
    if new.right is not None and old.right is not None:
        change = change_of_basis(new.right, old.right)
        moment = jnp.matrix_transpose(
            rotate_moment(change, jnp.matrix_transpose(moment), order, how)
        )
    return moment


def _product(spec: str, a: Array, b: Array) -> Array:
    """einsum of a basis and a matrix with float32 sums, in bfloat16 if that is what both are."""
    dtype = jnp.bfloat16 if a.dtype == b.dtype == jnp.bfloat16 else jnp.float32
    return jnp.einsum(spec, a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.float32)
