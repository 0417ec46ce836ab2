"""Orthonormal bases of gradient subspaces: how they are computed, compared and exchanged.

Everything is a pure function of arrays (..., m, r) and (..., m, n), batched over leading axes, one
basis per matrix. A basis P spans the subspace in which the gradient G (m, n) of a matrix is kept:
R = PᵀG (r, n). Bases of the other side are those of the transposed gradient.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array, lax

Order = Literal["first", "second"]
Moments = Literal["rotate", "fill", "keep", "reset"]

COMPLETION = 1e-6  # share of the old basis in a new one: decides only where the gradient is silent


def orthonormal(directions: Array, near: Array | None = None) -> Array:
    """An orthonormal basis (..., m, r) of the span of the columns of `directions` (..., m, r).

    Column j points the way direction j does (the diagonal of R in QR is positive), so an
    orthonormal input comes back unchanged and a warm basis keeps its signs. Always finite: what
    dependent or zero directions leave open is completed from `near`, the basis in use so far, or
    without it arbitrarily. Column lengths do not matter.

    Householder QR in float32, 2mr² - 2r³/3 multiply-adds (twice that, with Q formed).
    """
    columns = unit(directions, -2)
    if near is not None:
        columns = columns + COMPLETION * near.astype(jnp.float32)
    q, r = jnp.linalg.qr(columns)
    diagonal = jnp.diagonal(r, axis1=-2, axis2=-1)
    return q * jnp.where(diagonal < 0, -1.0, 1.0)[..., None, :]


def unit(vectors: Array, axis: int) -> Array:
    """Vectors along `axis` of length one in float32; zero stays zero, tiny ones do not vanish.

    Two steps, because the square of a small float32 is zero.
    """
    vectors = vectors.astype(jnp.float32)
    largest = jnp.max(jnp.abs(vectors), axis=axis, keepdims=True)
    vectors = vectors / jnp.where(largest > 0, largest, 1.0)
    length = jnp.linalg.norm(vectors, axis=axis, keepdims=True)
    return vectors / jnp.where(length > 0, length, 1.0)


def power_step(gradient: Array, basis: Array) -> Array:
    """The next basis: one block power step, orth(G Gᵀ P). 4mnr FLOPs and a QR, no SVD.

    From a basis of an earlier gradient it keeps above 0.99 of the energy that the best basis of
    this very gradient would (PowerSGD, arXiv 1905.13727, uses the same step to compress).
    """
    # Pᵀ G as it stands: the CPU takes three times as long for Gᵀ P.
    across = _product("...mr,...mn->...rn", basis, gradient)
    return orthonormal(_product("...mn,...rn->...mr", gradient, unit(across, -1)), near=basis)


def svd_basis(gradient: Array, rank: int) -> Array:
    """The best basis of rank `rank` of this gradient: its leading left singular vectors.

    Signs of singular vectors are arbitrary; here the largest entry of each is positive.
    """
    left, _, _ = jnp.linalg.svd(gradient.astype(jnp.float32), full_matrices=False)
    left = left[..., :rank]
    at = jnp.argmax(jnp.abs(left), axis=-2, keepdims=True)
    return left * jnp.where(jnp.take_along_axis(left, at, axis=-2) < 0, -1.0, 1.0)


def random_basis(key: Array, shape: tuple[int, ...]) -> Array:
    """A uniformly random orthonormal basis of shape (..., m, r)."""
    return orthonormal(jax.random.normal(key, shape))


def change_of_basis(new: Array, old: Array) -> Array:
    """C = P_newᵀ P_old (..., r, r): coordinates in the old basis -> coordinates in the new one."""
    highest = lax.Precision.HIGHEST
    return _product("...mr,...mk->...rk", new, old, precision=highest)


def overlap(new: Array, old: Array) -> Array:
    """How much of one subspace lies in the other, ‖P_newᵀ P_old‖²_F / r: 0 none of it, 1 all of it.

    Free of signs and of the choice of basis vectors. (...,) float32; r/m for unrelated subspaces.
    """
    return jnp.sum(jnp.square(change_of_basis(new, old)), axis=(-2, -1)) / new.shape[-1]


def captured(gradient: Array, basis: Array) -> Array:
    """The share of the gradient's energy that the subspace keeps, ‖PᵀG‖²/‖G‖². (...,) float32."""
    projected = _product("...mr,...mn->...rn", basis, gradient)
    square = lambda x: jnp.sum(jnp.square(x.astype(jnp.float32)), axis=(-2, -1))
    return square(projected) / jnp.maximum(square(gradient), jnp.finfo(jnp.float32).tiny)


def rotate_moment(change: Array, moment: Array, order: Order, how: Moments = "rotate") -> Array:
    """A moment (..., r, n) of the gradient's coordinates, carried over to another basis.

    `change` is C (..., r, r) of `change_of_basis`. First moments are linear, M <- C M. Second ones
    only known per coordinate: for independent coordinates V <- (C∘C) V. `how` is

    - "rotate": just that. Rows of C∘C sum to less than one as far as the new basis leaves the old
      subspace, so V shrinks there and the next steps are longer.
    - "fill": the missing share of V is filled with the mean over the old coordinates,
      V <- (C∘C) V + (1 - rowsum) mean(V).
    - "keep": unchanged, as published for GaLore; depends on arbitrary signs of the basis.
    - "reset": zeros.
    """
    if how == "keep":
        return moment
    if how == "reset":
        return jnp.zeros_like(moment)
    weights = change if order == "first" else jnp.square(change)
    rotated = _product("...rk,...kn->...rn", weights, moment, precision=lax.Precision.HIGHEST)
    if how == "fill" and order == "second":
        missing = jnp.maximum(1 - jnp.sum(weights, axis=-1, keepdims=True), 0)
        rotated = rotated + missing * jnp.mean(moment, axis=-2, keepdims=True, dtype=jnp.float32)
    return rotated.astype(moment.dtype)


def _product(spec: str, a: Array, b: Array, precision: lax.PrecisionLike = None) -> Array:
    """einsum with float32 sums; a mixed pair is multiplied in float32."""
    if a.dtype != b.dtype:
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return jnp.einsum(spec, a, b, precision=precision, preferred_element_type=jnp.float32)
