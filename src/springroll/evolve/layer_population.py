"""A population of a part of the parameters: one layer of a stack, or all that is in no stack.

What a part's members are follows from the whole: the same noise at the same address, so that a
model evolved layer by layer is the model evolved at once.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import jax
import optax
from jax.extend.core import Jaxpr, JaxprEqn

from springroll.errors import InputError
from springroll.evolve.perturbation import Leaf, Perturbation, draw_counted
from springroll.trees import PyTree


def layer_of(model: Perturbation, stack: str) -> Perturbation:
    """How one layer is perturbed: the leaves below `stack`, their first axis (layers) cut to 1.

    Members of it say with `first` which layer it is. Raises InputError if the noise cannot be
    drawn for one layer.
    """
    if model.draw_leaf is not draw_counted:
        raise InputError(
            f"{model.noise.name!r} noise cannot be drawn for one layer; evolve the model whole"
        )
    cut = lambda leaf: replace(leaf, shape=(1, *leaf.shape[1:]), stack=leaf.shape[0])
    return replace(model, leaves=tuple(cut(x) for x in model.leaves if in_stack(x, stack)))


def rest_of(model: Perturbation, stack: str) -> Perturbation:
    """How the parameters outside `stack` are perturbed."""
    return replace(model, leaves=tuple(x for x in model.leaves if not in_stack(x, stack)))


def in_stack(leaf: Leaf, stack: str) -> bool:
    return leaf.path.startswith(f"{stack}/")


_MIX = {"dot_general", "sort", "top_k", "argmax", "argmin", "conv_general_dilated", "fft"}


def check_elementwise(
    optimizer: optax.GradientTransformation, weights: PyTree, state: PyTree
) -> None:
    """Raise InputError if the optimizer's step for one number depends on others.

    Norms over a whole tree or a whole leaf are those of a part when it sees only a part.
    """
    with jax.numpy_dtype_promotion("standard"):
        program = jax.make_jaxpr(optimizer.update)(weights, state, weights)
    for equation in _equations(program.jaxpr):
        name = equation.primitive.name
        mixes = name in _MIX or name.startswith(("reduce_", "cum"))
        shape = getattr(equation.invars[0].aval, "shape", ()) if mixes else ()
        if name != "reduce_precision" and math.prod(shape) > 1:
            raise InputError(
                f"the optimizer takes a {name} over many numbers, so that a layer's step is not "
                "its own; use one that moves every number by itself, such as optax.sgd or "
                "optax.adam, or evolve the model whole"
            )


def _equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """All equations, also of programs inside programs."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
            if _is_program(value):
                yield from _equations(getattr(value, "jaxpr", value))


def _is_program(value: object) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")
