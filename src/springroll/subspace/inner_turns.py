"""Whether an optimizer that reads weights may read them in a subspace.

There weights are coordinates in a basis, and any other basis of the subspace would do as well. What
a turn of the basis leaves alone can be read (norms), weights may decay, and they may be added to
the gradients (L2 decay before momentum). The sign of one coordinate, or a bound on it, says nothing
of the weight. Which of the two an optimizer does is tried on small arrays.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from springroll.errors import InputError
from springroll.trees import PyTree

SIDE = 4  # of the small arrays, at most


def check_reads_no_coordinates(
    optimizer: optax.GradientTransformation,
    weights: PyTree,
    axes: Sequence[int | None],
    who: str,
    **extra: object,
) -> None:
    """Raise InputError if an optimizer reads weights number by number.

    Args:
        optimizer: one that `reads_weights`.
        weights: a tree as it is shown; only shapes and types are read.
        axes: by leaf the axis that the basis turns; None for what is in no subspace.
        who: the optimizer's name, for the message.
        **extra: arguments of its update.
    """
    try:
        with jax.ensure_compile_time_eval():
            fits = _tried(optimizer, weights, axes, extra)
    except (TypeError, ValueError):
        return  # it is made for arrays of these shapes alone, or for arguments of some value
    if not fits:
        raise InputError(
            f"{who} reads the weights number by number, and in a subspace these are coordinates in"
            " a basis, whose signs and sizes say nothing of a weight; put it behind the subspace,"
            " where it sees the weights, as in optax.chain(sr.galore(optax.adam(1e-3)),"
            " optax.keep_params_nonnegative())"
        )


def _tried(
    optimizer: optax.GradientTransformation,
    like: PyTree,
    axes: Sequence[int | None],
    extra: dict[str, object],
) -> bool:
    leaves, tree = jax.tree.flatten(like)
    random = np.random.default_rng(0)
    shapes = [tuple(min(n, SIDE) for n in jnp.shape(x)) for x in leaves]
    kinds = [jnp.result_type(x) for x in leaves]
    pairs = [*zip(shapes, kinds, strict=True)]
    drawn = lambda: [jnp.asarray(random.standard_normal(shape), kind) for shape, kind in pairs]
    none = [jnp.zeros(shape, kind) for shape, kind in pairs]
    weights, first, later = drawn(), drawn(), drawn()
    update = jax.jit(optax.with_extra_args_support(optimizer).update)
    given = jax.tree.map(_ones, extra)

    def step(first: list[Array], later: list[Array], weights: list[Array]) -> list[Array]:
        """The second of two steps."""
        with jax.numpy_dtype_promotion("standard"):  # optimizers need not be strict
            state = optimizer.init(tree.unflatten(none))
            _, state = update(tree.unflatten(first), state, tree.unflatten(none), **given)
            steps, _ = update(tree.unflatten(later), state, tree.unflatten(weights), **given)
        return tree.flatten_up_to(steps)

    turns = [
        None if axis is None else np.linalg.qr(random.standard_normal((shape[axis],) * 2))[0]
        for shape, axis in zip(shapes, axes, strict=True)
    ]
    turned = lambda leaves: [*map(_times, leaves, turns, axes)]
    before, after = turned(step(none, none, weights)), step(none, none, turned(weights))
    before, after = _flat(before, axes), _flat(after, axes)
    scale = np.max(np.abs(before), initial=1e-30)
    if np.allclose(before, after, rtol=1e-3, atol=1e-3 * scale, equal_nan=True):
        return True
    # What a turn of the weights does to the step, a gradient of that direction does as well.
    around = [None if q is None else q - q.T for q in turns]
    moved = map(_times, weights, around, axes)
    direction = [x if a is not None else 0 * x for x, a in zip(moved, axes, strict=True)]
    run = lambda later, weights: step(first, later, weights)
    slopes = lambda *way: _flat(jax.jvp(run, (later, weights), way)[1], axes)
    of_gradients, of_weights = slopes(direction, none), slopes(none, direction)
    share = of_weights @ of_gradients / max(of_gradients @ of_gradients, 1e-30)
    size = np.linalg.norm(of_weights)
    return bool(size > 0 and np.linalg.norm(of_weights - share * of_gradients) < 1e-3 * size)


def _times(x: Array, matrix: np.ndarray | None, axis: int | None) -> Array:
    """x with its axis multiplied by the matrix, if there is one."""
    if matrix is None or axis is None:
        return x
    return jnp.moveaxis(jnp.tensordot(x, jnp.asarray(matrix, x.dtype), (axis, 0)), -1, axis)


def _flat(leaves: Sequence[Array], axes: Sequence[int | None]) -> np.ndarray:
    """All numbers of the leaves in subspaces."""
    chosen = [x for x, axis in zip(leaves, axes, strict=True) if axis is not None]
    return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in chosen])


def _ones(x: object) -> object:
    """In place of an argument that is an array, perhaps a traced one."""
    shape, dtype = getattr(x, "shape", None), getattr(x, "dtype", None)
    return x if shape is None or dtype is None else jnp.ones(shape, dtype)
