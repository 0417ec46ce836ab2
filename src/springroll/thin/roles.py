"""The result of `discover`: one frozen, hashable record per parameter."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["low-rank", "dense", "frozen", "unused"]


@dataclass(frozen=True)
class WeightRole:
    """How one parameter is perturbed.

    - "low-rank": base + thin term, with `roles` as in `Factored`;
    - "dense": full-rank noise, because it is a vector or because some primitive needs it whole;
    - "frozen": not perturbed, because its type is not a float and not a short integer;
    - "unused": no output depends on it.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    roles: str | None
    kind: Kind
    reason: str  # why it is not low-rank, with the source line; empty for "low-rank"
    uses: tuple[str, ...]  # "dot_general at model.py:12 (mlp)", in program order
    # The activations that it multiplies, by number, and None for a use that is no product (a
    # lookup, a norm). Parameters with equal entries meet the same activation, as q, k and v do.
    meets: tuple[int | None, ...] = ()
    # Axes (experts) among which the rows of one common activation are dealt out: their slices are
    # stacked by role, and yet may share what belongs to that activation.
    dealt: tuple[int, ...] = ()


@dataclass(frozen=True)
class WeightRoles(Mapping[str, WeightRole]):
    """Parameter path -> WeightRole, in tree-flatten order. Hashable: fit for static metadata."""

    leaves: tuple[WeightRole, ...]

    def __getitem__(self, path: str) -> WeightRole:
        for leaf in self.leaves:
            if leaf.path == path:
                return leaf
        raise KeyError(path)

    def __iter__(self) -> Iterator[str]:
        return (leaf.path for leaf in self.leaves)

    def __len__(self) -> int:
        return len(self.leaves)
