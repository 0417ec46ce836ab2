"""The interpreter: a jaxpr on values of which some are `Factored`, by one rule per primitive."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Concatenate, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend import core as jex

from springroll import compat
from springroll.thin.axis_trace import MOVES, Flow
from springroll.thin.densify import Policy
from springroll.thin.factored_array import Factored
from springroll.thin.walk import Memo, walk

Operand: TypeAlias = Array | Factored
Outputs: TypeAlias = Sequence[Operand] | None
Run: TypeAlias = "Callable[Concatenate[Frame, jex.JaxprEqn, ...], Outputs]"

# What a weight of integer codes may meet before it is converted (see `is_coded`).
MOVES_CODES = MOVES | {"dynamic_slice", "slice", "unstack"}


class Rule(NamedTuple):
    """What one primitive does to low-rank weights.

    run: `run(frame, eqn, *operands) -> outputs`, some operands `Factored`; None for "no low-rank
        form here": the operands are then densified and reported.
    flow: how the axes of a weight move, or how they are used (see `axis_trace`).
    inside: whether `run` hands its operands to an inner program and looks at nothing itself.
    """

    run: Run
    flow: Flow
    inside: bool = False


@dataclass
class Frame:
    """One jaxpr under interpretation, as rules see it."""

    policy: Policy
    rules: Mapping[str, Rule]
    producers: Mapping[jex.Var, jex.JaxprEqn]  # variable -> the equation that computes it
    memo: Memo = field(default_factory=Memo)  # activation times factor (see `thin_term`)

    def step(self, eqn: jex.JaxprEqn, operands: Sequence[Operand]) -> Sequence[Operand]:
        """The outputs of one equation; it is rewritten only if it meets a `Factored`."""
        with compat.equation_context(eqn):
            arrays = [v for v in operands if not isinstance(v, Factored)]
            if len(arrays) == len(operands):
                return compat.bind(eqn, *arrays)
            rule = self.rules.get(eqn.primitive.name)
            inside = rule is not None and rule.inside
            if not inside:
                operands = [self.joined(v) for v in operands]
            coded = any(map(is_coded, operands))
            if rule is not None and (inside or not coded or eqn.primitive.name in MOVES_CODES):
                outputs = rule.run(self, eqn, *operands)
                if outputs is not None:
                    return outputs
            return compat.bind(eqn, *(self.dense(v, eqn) for v in operands))

    def run(self, jaxpr: compat.Jaxpr, args: Sequence[Operand]) -> list[Operand]:
        """Interpret an inner jaxpr; outputs may be Factored."""
        return interpret(jaxpr, args, self.policy, self.rules)

    def dense(self, value: Operand, eqn: jex.JaxprEqn, where: str = "") -> Array:
        """`value`; if it is Factored, densified and reported under `where` or the primitive."""
        value = self.joined(value)
        if not isinstance(value, Factored):
            return value
        return self.policy.densify(value, where or eqn.primitive.name, compat.source_of(eqn))

    def joined(self, value: Operand) -> Operand:
        """`value`; a Factored of `Blocks` with each factor in one piece, joined once."""
        if not isinstance(value, Factored):
            return value
        return value.joined(
            lambda factor: self.memo.once(factor.joined, jax.tree.leaves(factor.parts), "joined")
        )

    def varies_along(self, atom: jex.Var | jex.Literal) -> set[int]:
        """The axes along which a plain operand may differ from entry to entry.

        Looks through the broadcast that made the operand, so that a per-channel scale is seen.
        """
        axes = {i for i, size in enumerate(compat.shape_of(atom)) if size > 1}
        eqn = None if isinstance(atom, compat.Literal) else self.producers.get(atom)
        if eqn is not None and eqn.primitive.name == "broadcast_in_dim":
            source, dims = compat.shape_of(eqn.invars[0]), eqn.params["broadcast_dimensions"]
            axes &= {d for d, size in zip(dims, source, strict=True) if size > 1}
        return axes


def interpret(
    jaxpr: compat.Jaxpr, args: Sequence[Operand], policy: Policy, rules: Mapping[str, Rule]
) -> list[Operand]:
    """Evaluate a jaxpr on values of which some are Factored; only their equations are rewritten."""
    opened, _ = compat.open_jaxpr(jaxpr)
    frame = Frame(policy, rules, {var: eqn for eqn in opened.eqns for var in eqn.outvars})
    constant = lambda value: cast(Array, value)  # as it is: a number keeps its weak type
    return [frame.joined(out) for out in walk(jaxpr, args, frame.step, constant)]


def is_coded(weight: Operand) -> bool:
    """Whether an operand is a weight of integer codes with a real thin term in units of them.

    That is a weight stored in int8 and converted where it is used; until then it can only be moved.
    """
    if not isinstance(weight, Factored) or weight.lattice is not None:
        return False
    real = jnp.issubdtype(weight.left.dtype, jnp.inexact)
    return real and jnp.issubdtype(weight.dtype, jnp.integer)
