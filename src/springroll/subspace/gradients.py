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
from springroll.subspace.stored_basis import Basis, met
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
    projectors: Mapping[str, Basis],
    batch: PyTree,
    in_axes: PyTree = 0,
) -> tuple[Array, PyTree, PyTree]:
    """(loss, aux, gradient of the trainable tree), averaged over `parts` micro-batches.

    in_axes: see `averaged`.
    """

    def objective(trainable: PyTree, *micro: PyTree) -> tuple[Array, PyTree]:
        base = layout.base(trainable, frozen)
        return run(layout.weights(base, projectors, layout.low(trainable)), *micro)

    of = jax.value_and_grad(objective, has_aux=True)
    (loss, aux), grads = averaged(lambda *micro: of(trainable, *micro), batch, parts, in_axes)
    return loss, aux, grads


def power(
    run: Run,
    layout: Layout,
    parts: int,
    base: PyTree,
    projectors: Mapping[str, Basis],
    low: Mapping[str, Array],
    grads: Mapping[str, Array],
    batch: PyTree,
    in_axes: PyTree = 0,
) -> dict[str, Array]:
    """Z = G Gᵀ P up to a scale, per stream: one block power step on the batch's own gradient.

    A second backward pass with the thin term (x [P | A]) [S ; dS], differentiated in A at A = 0:
    that is xᵀ (dy dSᵀ) = G (Pᵀ G)ᵀ, summed by autodiff over everything that shares P, over
    micro-batches, vmapped examples and devices. No m x n array here either.
    """
    right = {path: Blocks((low[path], grads[path])) for path in low}
    one = {s.name: jnp.ones(s.rank) for s in layout.streams}
    gains = {
        s.name: jnp.concatenate([one[s.name], one[s.name] / _largest(grads, s)])
        for s in layout.streams
    }

    def objective(probe: Mapping[str, Array], *micro: PyTree) -> tuple[Array, None]:
        left = {name: met(p, probe[name]) for name, p in projectors.items()}
        return run(layout.weights(base, left, right, gains), *micro)[0], None

    of = jax.value_and_grad(objective, has_aux=True)
    zero = {name: jnp.zeros(p.shape) for name, p in projectors.items()}
    return averaged(lambda *micro: of(zero, *micro), batch, parts, in_axes)[1]


def _largest(grads: Mapping[str, Array], stream: Stream) -> Array:
    """The largest entry of dS among the users of a projector, so that Z does not underflow."""
    top = jnp.max(jnp.stack([jnp.max(jnp.abs(grads[user.path])) for user in stream.users]))
    return jnp.where(top > 0, top, 1.0)


def averaged(of: Callable[..., Result], batch: PyTree, parts: int, in_axes: PyTree = 0) -> Result:
    """The mean of of(*micro) over `parts` equal pieces of the batch's leading axis.

    Only the result is summed, in place: the pieces' gradients are as small as S.

    Args:
        in_axes: as of `jax.vmap`, for a tree of the batch or beginnings of it: 0 for what is cut,
            None for what all pieces share. Numbers without axes are shared, whatever it says.
            Typed PRNG keys without axes, or shared ones, are folded with the number of the piece.
    """
    if parts == 1:
        return of(*batch)
    leaves, tree = jax.tree.flatten(batch)
    cut = [
        _pieces(a, parts) if axis == 0 and jnp.ndim(a) else None
        for a, axis in zip(leaves, _axes(in_axes, batch), strict=True)
    ]

    def micro(part: Array | int, pieces: list[Array | None]) -> Result:
        pairs = zip(leaves, pieces, strict=True)
        return of(*tree.unflatten([_shared(a, part) if p is None else p for a, p in pairs]))

    first = [None if p is None else p[0] for p in cut]
    total = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(micro, 0, first))
    add = lambda total, xs: (jax.tree.map(jnp.add, total, micro(*xs)), None)
    total, _ = lax.scan(add, total, (jnp.arange(parts), cut))
    mean = lambda a: a / parts if jnp.issubdtype(a.dtype, jnp.floating) else a
    return jax.tree.map(mean, total)


def _axes(in_axes: PyTree, batch: PyTree) -> list[int | None]:
    """0 or None for every leaf of the batch."""
    prefix = tuple(in_axes) if isinstance(in_axes, list) else in_axes
    shared = lambda axis: axis is None
    spread = lambda axis, part: [axis] * len(jax.tree.leaves(part))
    try:
        if prefix in (0, None):
            found: list[int | None] = spread(prefix, batch)
        else:
            lists = jax.tree.map(spread, prefix, batch, is_leaf=shared)
            found = jax.tree.leaves(lists, is_leaf=shared)
    except ValueError:  # another tree
        found = [-1]
    if any(axis not in (0, None) for axis in found):
        raise InputError(
            f"in_axes is {in_axes}; expected 0 (cut into parts) or None (shared by all parts) for"
            f" each of the {len(batch)} arguments of a batch, or trees of these like them"
        )
    return found


def _shared(a: Array, part: Array | int) -> Array:
    """What all pieces see; a random key, another for each."""
    if not jnp.issubdtype(jnp.result_type(a), jax.dtypes.prng_key):
        return a
    fold = lambda key: jax.random.fold_in(key, part)
    for _ in range(jnp.ndim(a)):
        fold = jax.vmap(fold)
    return fold(a)


def _pieces(a: Array, parts: int) -> Array:
    if a.shape[0] % parts:
        raise InputError(
            f"a batch of shape {list(jnp.shape(a))} cannot be accumulated in {parts} equal parts;"
            " its first axis must be a multiple of accumulate, or in_axes say that it is no batch"
        )
    # Every parts-th row: rows that lie on many devices stay where they are, in every piece.
    return jnp.swapaxes(jnp.reshape(a, (a.shape[0] // parts, parts, *a.shape[1:])), 0, 1)
