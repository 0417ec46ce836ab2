"""Finding the moments of low-rank gradients inside the state of any optax transformation.

A state is walked by path. An array whose path is a known field name followed by the path of a
parameter is a moment of its low-rank gradient: for Adam `[0].mu["layers"]["w"]` and
`[0].nu["layers"]["w"]`. Names that mean different things in different optimizers are known with
their class. Moments stored in fewer bits (`quant.quantize_state`) are decoded, and coded again
afterwards. Means of a moment over one of its axes (Adafactor's) are left as they are, as in the
released code of GaLore.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from springroll.errors import InputError
from springroll.quant.quantize_state import FIRST as FIRST_MOMENTS
from springroll.quant.quantize_state import SECOND
from springroll.quant.root_companding import Quantized, dequantize, requantize
from springroll.subspace.basis import Moments, Order
from springroll.subspace.inner_reads import owner_of
from springroll.trees import KeyPath, PyTree, path_of

# Averages of the gradient itself turn with its coordinates; those of its square stay positive.
FIRST = (*FIRST_MOMENTS, "acc_grads", "grad_acc", "grad_sum", "ema", "previous_gradient")
# Fields that mean different things in different classes; None: a change of basis would break it.
OF_CLASS: dict[tuple[str, str], Order | None] = {
    ("FactoredState", "v"): "second",
    ("ScaleByAdanState", "v"): "first",
    ("ScaleByAdanState", "g"): "first",
    ("ScaleByRStdDevState", "nu"): None,  # nu - mu^2, a variance, would become negative
}
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]  # of low-rank gradients, by path


Leaf: TypeAlias = Array | Quantized  # of an optimizer's state


class Moment(NamedTuple):
    """Where a state keeps a moment of a parameter."""

    at: int  # among the leaves of `state_leaves`
    path: str  # of the parameter
    order: Order


def find_moments(state: PyTree, shapes: Shapes) -> list[Moment]:
    """All moments of the parameters in `shapes`."""
    moments = []
    leaves = jax.tree_util.tree_leaves_with_path(state, is_leaf=_coded)
    for at, (path, leaf) in enumerate(leaves):
        for i in range(len(path)):
            order, parameter = _order(state, path, i), _boxed(path_of(path[i + 1 :]), shapes)
            if order is not None and _shape(leaf) == shapes.get(parameter):
                moments.append(Moment(at, parameter, order))
                break
    return moments


def check_moments(state: PyTree, shapes: Shapes, paths: Collection[str], how: Moments) -> None:
    """Raise InputError if a state holds something that a change of basis should move, and cannot.

    That is what is shaped like a low-rank gradient and bears no known name, and what bears the name
    of a moment and belongs to no parameter.

    Args:
        state: of the inner optimizer.
        shapes: of all low-rank gradients.
        paths: of all parameters, those without a subspace among them.
        how: what becomes of moments; those that are kept need not be known.
    """
    known = {moment.at for moment in find_moments(state, shapes)}
    leaves = jax.tree_util.tree_leaves_with_path(state, is_leaf=_coded)
    for at, (path, leaf) in enumerate(leaves) if how != "keep" else ():
        ends = [_boxed(path_of(path[i:]), paths) for i in range(len(path) + 1)]
        parameter = next((end for end in ends if end in shapes), None)
        like = parameter is not None and _shape(leaf) == shapes[parameter]
        named = [i for i in range(len(path)) if _order(state, path, i) is not None]
        of = ends[named[0] + 1] if named else ""
        homeless = named and _shape(leaf) and not any(f"{of}/".startswith(f"{p}/") for p in paths)
        if (like and at not in known) or homeless:
            about = f"like the low-rank gradient of {parameter}" if like else "like no parameter"
            raise InputError(
                f"optimizer state {owner_of(state, path)} {path_of(path)} is shaped {about}, and"
                " nothing tells how it changes with the basis; use moments='keep' or an optimizer"
                " whose averages are called mu and nu, as in optax.adam"
            )


def state_leaves(state: PyTree) -> tuple[list[Leaf], PyTree]:
    """Arrays and coded arrays of a state, and the structure to put them back."""
    return jax.tree.flatten(state, is_leaf=_coded)


def decode(leaf: Leaf) -> Array:
    """The moment that a leaf of `state_leaves` stands for."""
    return dequantize(leaf) if isinstance(leaf, Quantized) else leaf


def encode(leaf: Leaf, moment: Array) -> Leaf:
    """`moment` in the form of `leaf`."""
    return requantize(leaf, moment) if isinstance(leaf, Quantized) else moment


def _shape(leaf: Leaf) -> tuple[int, ...]:
    return leaf.shape if isinstance(leaf, Quantized) else tuple(jnp.shape(leaf))


def _boxed(path: str, known: Collection[str]) -> str:
    """The path of a parameter as it is known: ours see an nnx.State without its boxes."""
    boxed = f"{path}/value"
    return boxed if boxed in known and path not in known else path


def _coded(node: object) -> bool:
    return isinstance(node, Quantized)


def _order(state: PyTree, path: KeyPath, at: int) -> Order | None:
    """What the field on place `at` of the path to a leaf holds."""
    field = getattr(path[at], "name", "")
    in_class = owner_of(state, path[: at + 1]), field
    if in_class in OF_CLASS:
        return OF_CLASS[in_class]
    return "first" if field in FIRST else "second" if field in SECOND else None
