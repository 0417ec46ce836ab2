"""Whether an optimizer that reads weights may read them in a subspace.

There weights are coordinates in a basis, and any other basis of the subspace would do as well. What
a turn of the basis leaves alone can be read (norms), weights may decay, and they may be added to
the gradients (an L2 penalty). The sign of one coordinate, or a bound on it, says nothing of the
weight. Which of the two an optimizer does is read from its program (`inner_follow`).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jax import Array

from springroll.errors import InputError
from springroll.subspace.inner_follow import (
    ReadsCoordinates,
    constant,
    coordinates,
    follow,
    settled,
)
from springroll.subspace.inner_reads import written_in
from springroll.trees import PyTree


def check_reads_no_coordinates(
    optimizer: optax.GradientTransformation,
    weights: PyTree,
    axes: Sequence[tuple[int, ...]],
    who: str,
    **extra: object,
) -> None:
    """Raise InputError if an optimizer reads weights number by number.

    Args:
        optimizer: one that `reads_weights`.
        weights: a tree as it is shown; only shapes and types are read.
        axes: by leaf the axes that are in a basis; none for what is in no subspace.
        who: the optimizer's name, for a message about something that has no name.
        **extra: arguments of its update.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), weights)
    leaves, tree = jax.tree.flatten(shapes)
    state = jax.eval_shape(optimizer.init, shapes)
    update = optax.with_extra_args_support(optimizer).update

    def step(weights: list[Array], gradients: list[Array], state: PyTree) -> PyTree:
        with jax.numpy_dtype_promotion("standard"):  # optimizers need not be strict
            return update(tree.unflatten(gradients), state, tree.unflatten(weights), **extra)

    closed = jax.make_jaxpr(step)(leaves, leaves, state)
    inputs = [
        coordinates(what, i, leaf.shape, turning)
        for what in ("weight", "gradient")
        for i, (leaf, turning) in enumerate(zip(leaves, axes, strict=True))
    ]
    start = [constant(jnp.shape(x)) for x in jax.tree.leaves(state)]
    count = len(leaves)
    try:  # what a step writes to the state the next one reads
        settled(lambda kept: follow(closed, [*inputs, *kept], count)[count:], start)
    except ReadsCoordinates as found:
        name = (found.eqn and written_in(found.eqn)) or who
        does = (
            "adds the weights to steps that were made of them number by number already"
            if found.again
            else "reads the weights number by number"
        )
        raise InputError(
            f"{name} {does}, and in a subspace these are coordinates in a basis, whose signs and"
            f" sizes say nothing of a weight; put {name} behind the subspace, where it sees the"
            " weights, as in optax.chain(sr.galore(optax.adam(1e-3)),"
            " optax.keep_params_nonnegative())"
        ) from None
