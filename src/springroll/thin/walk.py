"""The one walk over the equations of a jaxpr, and results that are computed once.

The interpreter of low-rank weights (`interpreter`), the pass that follows their axes (`axis_trace`)
and the graph of an optimizer's update (`quant.sliced_update`) are this walk, each with a step
of its own.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from jax import Array
from jax.extend import core as jex
from jax.typing import ArrayLike

from springroll import compat

Value = TypeVar("Value")


def walk(
    jaxpr: compat.Jaxpr,
    args: Sequence[Value],
    step: Callable[[jex.JaxprEqn, list[Value]], Sequence[Value]],
    constant: Callable[[ArrayLike], Value],
) -> list[Value]:
    """The values of a jaxpr's outputs, given those of its inputs.

    `step(equation, operands)` returns the values of an equation's outputs; `constant` returns the
    value of a literal or a captured constant.
    """
    opened, consts = compat.open_jaxpr(jaxpr)
    inputs = [*map(constant, consts), *args]
    values = dict(zip([*opened.constvars, *opened.invars], inputs, strict=True))

    def read(atom: jex.Var | jex.Literal) -> Value:
        return constant(atom.val) if isinstance(atom, compat.Literal) else values[atom]

    for eqn in opened.eqns:
        with compat.inside(eqn):
            outs = step(eqn, [read(atom) for atom in eqn.invars])
        values.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in opened.outvars]


@dataclass
class Memo:
    """Results by the identity of their operands, which live as long as the results do."""

    results: dict[tuple[Hashable, ...], tuple[Array, Sequence[object]]] = field(
        default_factory=dict
    )

    def once(
        self, compute: Callable[[], Array], operands: Sequence[object], *spec: Hashable
    ) -> Array:
        """`compute()`, or its result from the last call with the same operands and `spec`."""
        key = (*map(id, operands), *spec)
        if key not in self.results:
            self.results[key] = (compute(), operands)
        return self.results[key][0]
