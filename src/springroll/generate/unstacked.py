"""Stacks of layers taken apart, so that a step of decoding finds each layer's arrays in one piece.

Weights and factors are stacked by layer where they are trained. A step that reads a slice of a
stack copies it first, and steps are many: here that is done once, before them. This holds the
weights twice while text is generated.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax import Array, lax

from springroll.evolve.perturbation import Factors, Leaf, Perturbation

STACK = "layers"


def weights(params: Any) -> Any:
    """params with a list of layers in the place of the stack."""
    stack = params[STACK]
    count = jax.tree.leaves(stack)[0].shape[0]
    layer = lambda i: jax.tree.map(lambda w: _at(w, i, 0), stack)
    return {**params, STACK: [layer(i) for i in range(count)]}


def perturbation(whole: Perturbation) -> Perturbation:
    """The same noise of the weights taken apart."""
    leaves = [leaf for one in whole.leaves for leaf in _leaves(one)]
    return dataclasses.replace(whole, leaves=tuple(leaves))


def factors(whole: Perturbation, stacked: Factors) -> Factors:
    """The factors of `whole`, by the paths of `perturbation(whole)`."""
    found: Factors = {}
    for leaf in whole.evolved:
        for i, part in enumerate(_leaves(leaf)):
            sides = _layer_axes(leaf)
            found[part.path] = tuple(
                x if axis is None or part is leaf else _at(x, i, axis)
                for x, axis in zip(stacked[leaf.path], sides, strict=True)
            )
    return found


def _leaves(leaf: Leaf) -> list[Leaf]:
    """The leaf of every layer; the leaf itself if it is of no stack."""
    if not leaf.path.startswith(f"{STACK}/"):
        return [leaf]
    rest = leaf.path.removeprefix(f"{STACK}/")
    cut = lambda i: dataclasses.replace(
        leaf, path=f"{STACK}/{i}/{rest}", shape=leaf.shape[1:], roles=leaf.roles[1:]
    )
    return [cut(i) for i in range(leaf.shape[0])]


def _layer_axes(leaf: Leaf) -> tuple[int | None, ...]:
    """The axis of each of a leaf's factors, with its pairs, that counts layers."""
    if leaf.kind == "dense":
        return (0 if leaf.stacked else 1,)
    role = leaf.roles[0]
    if role == "s":
        return 0, 0
    return (1, None) if role == "m" else (None, 1)  # pairs come first: no leading axis is shared


def _at(x: Array, i: int, axis: int) -> Array:
    return lax.index_in_dim(x, i, axis, keepdims=False)
