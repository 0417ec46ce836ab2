"""What the bundles of a model are: for every leaf of a bundle, the parameter that it is a part of.

A bundle is a tree of `Part`s, and a model is a list of bundles in the order in which they are
computed, the rest (embedding, last norm, head) last. Stores are filled from this list, and
checkpoints put parameters together from it, so both are the same however a model is cut.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import jax
from jax.typing import DTypeLike

from springroll.errors import expect
from springroll.models.expert_stages import only_experts, without_experts
from springroll.ranges import COUNT, check_number
from springroll.trees import PyTree, map_named

Index: TypeAlias = tuple[int | slice, ...]
Bundles: TypeAlias = list[PyTree]  # trees of `Part`s
ALL = slice(None)


@dataclass(frozen=True)
class Part:
    """param[index], with an index into leading stacks.

    path: of the parameter, as "layers/mlp/gate". parameter_shape: its shape.
    """

    path: str
    parameter_shape: tuple[int, ...]
    dtype: DTypeLike
    index: Index = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of this part."""
        given = [*self.index, *[ALL] * (len(self.parameter_shape) - len(self.index))]
        return tuple(
            len(range(*at.indices(size)))
            for at, size in zip(given, self.parameter_shape, strict=True)
            if isinstance(at, slice)
        )

    @property
    def struct(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.shape, self.dtype)


def whole_layers(shapes: PyTree) -> Bundles:
    """The bundles of a model that passes layer by layer.

    Args:
        shapes: Parameters as `jax.ShapeDtypeStruct`s, blocks stacked in "layers".

    Returns:
        One tree of `Part`s for each layer, in order, and last that of all other parameters.
    """
    depth = _depth(shapes)
    return [*(_layer(shapes, i) for i in range(depth)), _rest(shapes)]


def _depth(shapes: PyTree) -> int:
    """How many layers a model has."""
    stacks = (
        jax.tree.leaves(shapes["layers"])
        if isinstance(shapes, Mapping) and "layers" in shapes
        else []
    )
    expected = "parameters with blocks stacked in 'layers'"
    fits = bool(stacks) and all(getattr(x, "shape", ()) for x in stacks)
    expect(fits, "shapes", shapes, expected)
    return stacks[0].shape[0]


def experts_apart(shapes: PyTree, together: int) -> Bundles:
    """The bundles of a mixture whose layers pass as attention and then a few experts at a time.

    Args:
        shapes: As for `whole_layers`.
        together: Experts of a bundle; it divides their number.

    Returns:
        For each layer a bundle without experts and then those of its experts; last the rest.
    """
    check_number("together", together, int, COUNT)
    layers, rest = whole_layers(shapes)[:-1], _rest(shapes)
    bundles = []
    for layer in layers:
        experts = only_experts(layer)
        count = jax.tree.leaves(experts)[0].shape[0]
        bundles.append(without_experts(layer))
        for begin in range(0, count, together):
            few = slice(begin, begin + together)
            bundles.append(jax.tree.map(lambda part, few=few: _narrowed(part, few), experts))
    return [*bundles, rest]


def kinds(bundles: Bundles) -> list[list[int]]:
    """Numbers of the bundles that are alike in structure and shapes, in order of appearance."""
    groups: dict[Hashable, list[int]] = {}
    for number, tree in enumerate(bundles):
        leaves, structure = jax.tree.flatten(tree)
        groups.setdefault((structure, *[part.shape for part in leaves]), []).append(number)
    return list(groups.values())


def overlap(part: Part, index: tuple[int, ...]) -> tuple[Index, Index] | None:
    """Which of param[index] is in a part and where: part[inside] = param[index][source]; or None.

    Returns:
        (source, inside)
    """
    source: list[int | slice] = []
    inside: list[int | slice] = []
    for axis in range(max(len(index), len(part.index))):
        given = index[axis] if axis < len(index) else ALL
        own = part.index[axis] if axis < len(part.index) else ALL
        if isinstance(given, slice):
            source.append(own)
            inside += [ALL] if isinstance(own, slice) else []
        elif isinstance(own, slice):
            span = range(*own.indices(part.parameter_shape[axis]))
            if given not in span:
                return None
            inside.append(span.index(given))
        elif given != own:
            return None
    return tuple(source), tuple(inside)


def numbers(bundles: Sequence[PyTree]) -> int:
    """Parameters of these bundles."""
    return sum(math.prod(part.shape) for part in jax.tree.leaves(list(bundles)))


def _layer(shapes: PyTree, layer: int) -> PyTree:
    part = lambda path, leaf: Part(f"layers/{path}", leaf.shape, leaf.dtype, (layer,))
    return map_named(part, shapes["layers"])


def _rest(shapes: PyTree) -> PyTree:
    part = lambda path, leaf: Part(path, leaf.shape, leaf.dtype)
    return map_named(part, {name: tree for name, tree in shapes.items() if name != "layers"})


def _narrowed(part: Part, few: slice) -> Part:
    return Part(part.path, part.parameter_shape, part.dtype, (*part.index, few))
