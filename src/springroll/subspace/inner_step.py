"""One step of the inner optimizer of `lowgrad`, on S and on all that is trained as it is."""

import math
from collections.abc import Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import Array

from springroll.errors import InputError
from springroll.subspace.inner_reads import Run, reader, reads_weights
from springroll.subspace.inner_turns import check_reads_no_coordinates
from springroll.subspace.leaves import Layout
from springroll.subspace.stored_basis import Basis
from springroll.trees import Metrics, PyTree, squared_norm

# (trainable tree, optimizer state, skipped steps): what the hot step writes, in place.
Moving: TypeAlias = tuple[PyTree, PyTree, Array]


def inner_step(
    optimizer: optax.GradientTransformation,
    layout: Layout,
    scale: float | None,
    moving: Moving,
    loss: Array,
    grads: PyTree,
    fixed: tuple[PyTree, Mapping[str, Basis]] | None,
) -> tuple[Moving, Metrics]:
    """(moving, metrics) after the step, unless loss or gradient is not finite.

    A branch, not a select: a select would keep old and new moments alive side by side.

    Args:
        optimizer: Any transformation.
        layout: Which leaf is what.
        scale: Factor on the updates of S; None: sqrt(inputs / rank).
        moving: What the step changes.
        loss: () of this batch.
        grads: Of the trainable tree.
        fixed: The frozen weights and the projectors, for an optimizer that reads weights; None
            where they are elsewhere.

    Raises:
        InputError: The optimizer reads weights, and they are elsewhere, or it reads them number by
            number.
    """
    trainable, opt, skipped = moving
    run, low = _of_low(optimizer, layout, moving, grads)
    reads = reads_weights(run, low)
    if reads and fixed is None:
        raise InputError(
            f"{reader(run, low)} reads the weights, and not only to let them decay (they may be in"
            " the gradients that it is given, as after optax.add_decayed_weights); it cannot where"
            " these are streamed: use an optimizer such as optax.adam"
        )
    if reads:
        paths = layout.map(lambda path, leaf: None if leaf is None else path, trainable)
        axes = [(-1,) if path in layout.thin else () for path in jax.tree.leaves(paths)]
        check_reads_no_coordinates(optimizer, trainable, axes, reader(run, low))
    norm = jnp.sqrt(squared_norm(grads))
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)

    def take(trainable: PyTree, opt: PyTree, grads: PyTree) -> tuple[PyTree, PyTree]:
        seen = layout.projected(trainable, *fixed) if reads and fixed is not None else trainable
        with jax.numpy_dtype_promotion("standard"):  # optimizers need not be strict
            updates, opt = optimizer.update(grads, opt, seen)
        return optax.apply_updates(trainable, _scaled(layout, scale, updates)), opt

    skip = lambda trainable, opt, grads: (trainable, opt)
    trainable, opt = jax.lax.cond(finite, take, skip, trainable, opt, grads)
    skipped = skipped + jnp.where(finite, 0, 1).astype(jnp.int32)
    return (trainable, opt, skipped), {"grad_norm": norm, "skipped": skipped}


def _of_low(
    optimizer: optax.GradientTransformation, layout: Layout, moving: Moving, grads: PyTree
) -> tuple[Run, list[Array]]:
    """The optimizer's update as a function of all S, and these."""
    trainable, opt, _ = moving
    paths = list(layout.thin)

    def run(low: list[Array]) -> tuple[list[Array], PyTree]:
        seen = layout.with_low(trainable, dict(zip(paths, low, strict=True)))
        with jax.numpy_dtype_promotion("standard"):  # optimizers need not be strict
            updates, after = optimizer.update(grads, opt, seen)
        own = layout.low(updates)
        rest = layout.map(lambda path, step: None if path in own else step, updates)
        return [*(own[path] for path in paths), *jax.tree.leaves(rest)], after

    low = layout.low(trainable)
    return run, [low[path] for path in paths]


def _scaled(layout: Layout, scale: float | None, updates: PyTree) -> PyTree:
    thin = layout.thin

    def one(path: str, update: Array) -> Array:
        if path not in thin:
            return update
        by = math.sqrt(thin[path].inputs / thin[path].rank) if scale is None else scale
        return update * jnp.asarray(by, update.dtype)

    return layout.map(one, updates)
