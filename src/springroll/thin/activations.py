"""Which activation is which: names for the values of a program that survive a cast or a reshape.

Weights that meet the same activation have gradients with the same row space (q, k and v; gate and
up), so they can share one projector. A name is an integer; a move keeps it, any other equation
makes a new one.
"""

from __future__ import annotations

import itertools
from typing import Any

from springroll import compat

MOVES = frozenset(
    "broadcast_in_dim convert_element_type copy copy_p device_put name optimization_barrier"
    " reduce_precision reshard reshape sharding_constraint squeeze stop_gradient transpose".split()
)


# What sorts, picks or mixes rows: after it they belong to no expert.
MIXES = frozenset(
    "cumsum dot_general gather ragged_dot_general rev scan scatter scatter-add sort while".split()
)


class Names:
    """The names of one jaxpr's values; `counter` and `dealt` are common to a whole program.

    `dealt` are the names of activations whose rows each belong to one expert: results of grouped
    products and what is computed from those entry by entry.
    """

    def __init__(
        self, counter: itertools.count[int], inputs: dict[Any, int], dealt: set[int]
    ) -> None:
        self.counter, self.known, self.dealt = counter, dict(inputs), dealt

    def of(self, atom: Any) -> int:
        """The name of a variable, a new one for what has none; a literal is itself every time."""
        if isinstance(atom, compat.Literal):
            return next(self.counter)
        if atom not in self.known:
            self.known[atom] = next(self.counter)
        return self.known[atom]

    def follow(self, eqn: Any) -> None:
        """Outputs of a move are called like its operand; entrywise operations keep the expert."""
        kind = eqn.primitive.name
        if kind in MOVES:
            self.known[eqn.outvars[0]] = self.of(eqn.invars[0])
        elif kind not in MIXES:
            shapes = {a.aval.shape for a in eqn.invars if self.belongs(self._known(a))}
            self.dealt.update(self.of(v) for v in eqn.outvars if v.aval.shape in shapes)

    def deal(self, eqn: Any) -> None:
        """The result of a grouped product belongs to the experts, row by row."""
        self.dealt.add(self.of(eqn.outvars[0]))

    def belongs(self, name: int | None) -> bool:
        """Whether the rows of an activation each belong to one expert."""
        return name in self.dealt

    def _known(self, atom: Any) -> int | None:
        return None if isinstance(atom, compat.Literal) else self.known.get(atom)
