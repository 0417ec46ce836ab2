"""Gradients of S = gradients of the weights in their subspaces, and the power step that moves them.

With y = x W + (x P) S and only S differentiated, autodiff keeps x P instead of x and returns
dS = Pᵀ G = (x P)ᵀ dy. The m x n gradient G = xᵀ dy never exists, not even for one layer.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from springroll.errors import InputError
from springroll.subspace.leaves import Layout
from springroll.subspace.streams import Stream
from springroll.thin.factored_array import Blocks
from springroll.trees import PyTree

Result = TypeVar("Result")  # a tree of arrays
Run = Callable[..., tuple[Array, PyTree]]  # (weights, *batch) -> (loss, aux)


def gradients(
    run: Run,
    layout: Layout,
    parts: int,
    trainable: PyTree,
    frozen: PyTree,
    projectors: Mapping[str, Array],
    batch: PyTree,
) -> tuple[Array, PyTree, PyTree]:
    """(loss, aux, gradient of the trainable tree), averaged over `parts` micro-batches."""

    def objective(trainable: PyTree, *micro: PyTree) -> tuple[Array, PyTree]:
        base = layout.base(trainable, frozen)
        return run(layout.weights(base, projectors, layout.low(trainable)), *micro)

    of = jax.value_and_grad(objective, has_aux=True)
    (loss, aux), grads = averaged(lambda *micro: of(trainable, *micro), batch, parts)
    return loss, aux, grads


def power(
    run: Run,
    layout: Layout,
    parts: int,
    base: PyTree,
    projectors: Mapping[str, Array],
    low: Mapping[str, Array],
    grads: Mapping[str, Array],
    batch: PyTree,
) -> dict[str, Array]:
    """Z = G Gᵀ P up to a scale, per stream: one block power step on the batch's own gradient.

    A second backward pass with the thin term (x [P | A]) [S ; dS], differentiated in A at A = 0:
    that is xᵀ (dy dSᵀ) = G (Pᵀ G)ᵀ, summed by autodiff over everything that shares P, over
    micro-batches, vmapped examples and devices. No m x n array here either.
    """
    right = {path: Blocks((low[path], grads[path])) for path in low}
    one = jnp.ones(layout.rank)
    gains = {s.name: jnp.concatenate([one, one / _largest(grads, s)]) for s in layout.streams}

    def objective(probe: Mapping[str, Array], *micro: PyTree) -> tuple[Array, None]:
        left = {name: Blocks((p, probe[name])) for name, p in projectors.items()}
        return run(layout.weights(base, left, right, gains), *micro)[0], None

    of = jax.value_and_grad(objective, has_aux=True)
    zero = {name: jnp.zeros_like(p) for name, p in projectors.items()}
    return averaged(lambda *micro: of(zero, *micro), batch, parts)[1]


def _largest(grads: Mapping[str, Array], stream: Stream) -> Array:
    """The largest entry of dS among the users of a projector, so that Z does not underflow."""
    top = jnp.max(jnp.stack([jnp.max(jnp.abs(grads[user.path])) for user in stream.users]))
    return jnp.where(top > 0, top, 1.0)


def averaged(of: Callable[..., Result], batch: PyTree, parts: int) -> Result:
    """The mean of of(*micro) over `parts` equal pieces of the batch's leading axis.

    Only the result is summed, in place: the pieces' gradients are as small as S.
    """
    if parts == 1:
        return of(*batch)
    pieces = jax.tree.map(lambda a: _pieces(a, parts), batch)
    first = jax.tree.map(lambda a: a[0], pieces)
    total = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(of, *first))
    add = lambda total, micro: (jax.tree.map(jnp.add, total, of(*micro)), None)
    total, _ = lax.scan(add, total, pieces)
    mean = lambda a: a / parts if jnp.issubdtype(a.dtype, jnp.floating) else a
    return jax.tree.map(mean, total)


def _pieces(a: Array, parts: int) -> Array:
    if jnp.ndim(a) == 0 or a.shape[0] % parts:
        raise InputError(
            f"a batch of shape {list(jnp.shape(a))} cannot be accumulated in {parts} equal parts;"
            " its first axis must be a multiple of accumulate."
        )
    # Every parts-th row: rows that lie on many devices stay where they are, in every piece.
    return jnp.swapaxes(jnp.reshape(a, (a.shape[0] // parts, parts, *a.shape[1:])), 0, 1)
