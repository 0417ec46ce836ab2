"""What the bundles of a model are: for every leaf of a bundle, the parameter that it is a part of.

A bundle is a tree of `Part`s, and a model is a list of bundles in the order in which they are
computed, the rest (embedding, last norm, head) last. Stores are filled from this list, and
checkpoints put parameters together from it, so both are the same however a model is cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax

from springroll.models.expert_stages import only_experts, without_experts

Index: TypeAlias = tuple[int | slice, ...]
Bundles: TypeAlias = list[Any]  # trees of `Part`s
ALL = slice(None)


@dataclass(frozen=True)
class Part:
    """param[index], with an index into leading stacks.

    path: of the parameter, as "layers/mlp/gate". whole: its shape.
    """

    path: str
    whole: tuple[int, ...]
    dtype: Any
    index: Index = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of this part."""
        given = [*self.index, *[ALL] * (len(self.whole) - len(self.index))]
        return tuple(
            len(range(*at.indices(size)))
            for at, size in zip(given, self.whole, strict=True)
            if isinstance(at, slice)
        )

    @property
    def struct(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.shape, self.dtype)


def whole_layers(shapes: Any) -> Bundles:
    """Every layer is a bundle.

    Args:
        shapes: parameters as `jax.ShapeDtypeStruct`s, blocks stacked in "layers".
    """
    depth = jax.tree.leaves(shapes["layers"])[0].shape[0]
    return [*(_layer(shapes, i) for i in range(depth)), _rest(shapes)]


def experts_apart(shapes: Any, together: int) -> Bundles:
    """A layer is a bundle without experts, and then bundles of `together` experts each."""
    layers, rest = whole_layers(shapes)[:-1], _rest(shapes)
    found = []
    for layer in layers:
        experts = only_experts(layer)
        count = jax.tree.leaves(experts)[0].shape[0]
        found.append(without_experts(layer))
        for begin in range(0, count, together):
            few = slice(begin, begin + together)
            found.append(jax.tree.map(lambda part, few=few: _narrowed(part, few), experts))
    return [*found, rest]


def kinds(bundles: Bundles) -> list[list[int]]:
    """Numbers of the bundles that are alike in structure and shapes, in order of appearance."""
    found: dict[Any, list[int]] = {}
    for number, tree in enumerate(bundles):
        leaves, structure = jax.tree.flatten(tree)
        found.setdefault((structure, *[part.shape for part in leaves]), []).append(number)
    return list(found.values())


def overlap(part: Part, index: tuple[int, ...]) -> tuple[Index, Index] | None:
    """Which of param[index] is in a part and where: part[there] = param[index][from_]; or None.

    Returns:
        (from_, there)
    """
    from_: list[int | slice] = []
    there: list[int | slice] = []
    for axis in range(max(len(index), len(part.index))):
        given = index[axis] if axis < len(index) else ALL
        own = part.index[axis] if axis < len(part.index) else ALL
        if isinstance(given, slice):
            from_.append(own)
            there += [ALL] if isinstance(own, slice) else []
        elif isinstance(own, slice):
            span = range(*own.indices(part.whole[axis]))
            if given not in span:
                return None
            there.append(span.index(given))
        elif given != own:
            return None
    return tuple(from_), tuple(there)


def numbers(bundles: Sequence[Any]) -> int:
    """Parameters of these bundles."""
    return sum(math.prod(part.shape) for part in jax.tree.leaves(list(bundles)))


def _layer(shapes: Any, layer: int) -> Any:
    def part(path: Any, leaf: Any) -> Part:
        return Part(f"layers/{_spelt(path)}", leaf.shape, leaf.dtype, (layer,))

    return jax.tree_util.tree_map_with_path(part, shapes["layers"])


def _rest(shapes: Any) -> Any:
    part = lambda path, leaf: Part(_spelt(path), leaf.shape, leaf.dtype)
    others = {name: tree for name, tree in shapes.items() if name != "layers"}
    return jax.tree_util.tree_map_with_path(part, others)


def _narrowed(part: Part, few: slice) -> Part:
    return Part(part.path, part.whole, part.dtype, (*part.index, few))


def _spelt(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
