"""What a rule may ask of the interpreter: the frame of the jaxpr that is being run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from springroll import compat
from springroll.thin.densify import Policy
from springroll.thin.factored_array import Blocks, Factored


@dataclass
class Frame:
    """One jaxpr under interpretation: its values so far, its equations, the densify policy."""

    policy: Policy
    values: dict[Any, Any]
    producers: dict[Any, Any]  # variable -> the equation that made it
    interpret: Callable[[Any, Sequence[Any], Policy], list[Any]]
    seen: dict[Any, Any] = field(default_factory=dict)  # activation times factor (see `thin_term`)

    def read(self, atom: Any) -> Any:
        return atom.val if isinstance(atom, compat.Literal) else self.values[atom]

    def run(self, jaxpr: Any, args: Sequence[Any]) -> list[Any]:
        """Interpret an inner jaxpr; outputs may be Factored."""
        return self.interpret(jaxpr, args, self.policy)

    def dense(self, value: Any, eqn: Any, where: str = "") -> Any:
        """`value`; if it is Factored, densified and reported under `where` or the primitive."""
        value = self.joined(value)
        if not isinstance(value, Factored):
            return value
        return self.policy.densify(value, where or eqn.primitive.name, compat.source_of(eqn))

    def joined(self, value: Any) -> Any:
        """`value`; a Factored of `Blocks` with each factor in one piece, equal parts made once."""
        if not isinstance(value, Factored):
            return value
        return dataclasses.replace(value, left=self._one(value.left), right=self._one(value.right))

    def _one(self, factor: Any) -> Any:
        if not isinstance(factor, Blocks):
            return factor
        key = ("joined", *map(id, factor.parts))
        if key not in self.seen:  # with the parts, whose ids they are
            self.seen[key] = (factor.joined(), factor)
        return self.seen[key][0]

    def varies_along(self, atom: Any) -> set[int]:
        """The axes along which a plain operand may differ from entry to entry.

        Looks through the broadcast that made the operand, so that a per-channel scale is seen.
        """
        axes = {i for i, size in enumerate(np.shape(self.read(atom))) if size > 1}
        eqn = None if isinstance(atom, compat.Literal) else self.producers.get(atom)
        if eqn is not None and eqn.primitive.name == "broadcast_in_dim":
            source, dims = eqn.invars[0].aval.shape, eqn.params["broadcast_dimensions"]
            axes &= {d for d, size in zip(dims, source, strict=True) if size > 1}
        return axes
