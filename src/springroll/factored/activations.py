"""Which activation is which: names for the values of a program that survive a cast or a reshape.

Weights that meet the same activation have gradients with the same row space (q, k and v; gate and
up), so they can share one projector. A name is an integer; a move keeps it, any other equation
makes a new one.
"""

from __future__ import annotations

import itertools
from typing import Any

from springroll.factored import _compat

MOVES = frozenset(
    "broadcast_in_dim convert_element_type copy copy_p device_put name optimization_barrier"
    " reduce_precision reshard reshape sharding_constraint squeeze stop_gradient transpose".split()
)


class Names:
    """The names of one jaxpr's values; `counter` is shared by all jaxprs of a program."""

    def __init__(self, counter: itertools.count[int], inputs: dict[Any, int]) -> None:
        self.counter, self.known = counter, dict(inputs)

    def of(self, atom: Any) -> int:
        """The name of a variable, a new one for what has none; a literal is itself every time."""
        if isinstance(atom, _compat.Literal):
            return next(self.counter)
        if atom not in self.known:
            self.known[atom] = next(self.counter)
        return self.known[atom]

    def follow(self, eqn: Any) -> None:
        """Outputs of a move are called like its operand."""
        if eqn.primitive.name in MOVES:
            self.known[eqn.outvars[0]] = self.of(eqn.invars[0])
