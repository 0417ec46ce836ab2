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
    - "frozen": not perturbed, because its type is neither a float nor int8, or because it is int8
      beside floats: `sr.eggroll` evolves the floats of such parameters, `sr.lattice` the int8 ones;
    - "unused": no output depends on it.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    roles: str | None  # of low-rank ones, also those that are so for sr.lattice alone
    kind: Kind
    reason: str  # why it is not low-rank, with the source line; empty for "low-rank"
    uses: tuple[str, ...]  # "dot_general at model.py:12 (mlp)", in program order
    # The activations that it multiplies, by number, and None for a use that is no product (a
    # lookup, a norm). Parameters with equal entries meet the same activation, as q, k and v do.
    meets: tuple[int | None, ...] = ()
    # Axes (experts) among which the rows of one common activation are dealt out: their slices are
    # stacked by role, and yet may share what belongs to that activation.
    dealt: tuple[int, ...] = ()
    # Whether it is dense because a primitive needs it whole (and not because it is a vector).
    formed: bool = False
    # Of int8 beside floats, which is "frozen": what sr.lattice and sr.lowgrad make of it.
    integer_kind: Kind | None = None

    @property
    def program_kind(self) -> Kind:
        """How the program allows it to be perturbed, whatever is beside it."""
        return self.integer_kind or self.kind


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
