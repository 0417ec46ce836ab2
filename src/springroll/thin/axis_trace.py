"""Where the axes of every parameter go: a walk over the jaxpr that follows them.

Each value of the program is a tuple of `Ref`s, the parameters that it is made of by moves that
keep a thin term thin. The `flow` of a primitive's rule says how the axes move or how they are used.

Activations get names, integers that survive a cast or a reshape: weights that meet the same
activation have gradients with the same row space (q, k and v; gate and up), so they can share one
projector.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from jax.extend import core as jex

from springroll import compat
from springroll.thin.walk import walk

Atom: TypeAlias = jex.Var | jex.Literal

# An activation keeps its name through these.
MOVES = frozenset(
    "broadcast_in_dim convert_element_type copy copy_p device_put name optimization_barrier"
    " reduce_precision reshard reshape sharding_constraint squeeze stop_gradient transpose".split()
)
# These sort, pick or mix rows: after them rows belong to no expert.
MIXES = frozenset(
    "cumsum dot_general gather ragged_dot_general rev scan scatter scatter-add sort while".split()
)


class Ref(NamedTuple):
    """A parameter under way: for each present axis, the original axes that it came from."""

    leaf: int
    axes: tuple[tuple[int, ...], ...]


Refs: TypeAlias = tuple[Ref, ...]
Flow: TypeAlias = "Callable[[AxisTrace, jex.JaxprEqn, list[Refs]], list[Refs]]"


class Use(NamedTuple):
    """One place where a parameter is used up, in terms of its original axes."""

    primitive: str
    source: str
    summed: frozenset[int] = frozenset()  # contracted or looked up
    shared: frozenset[int] = frozenset()  # batch axes
    elementwise: bool = False  # broadcast against a bigger activation
    meets: int | None = None  # the name of the activation that it multiplies
    # Batch axes (experts) among which the rows of one common activation are dealt out.
    dealt: frozenset[int] = frozenset()

    def __str__(self) -> str:
        return f"{self.primitive} at {self.source}"


class Names:
    """The names of one jaxpr's values; `counter` and `dealt` are common to a whole program.

    `dealt` are the names of activations whose rows each belong to one expert: results of grouped
    products and what is computed from those entry by entry.
    """

    def __init__(
        self, counter: itertools.count[int], inputs: dict[jex.Var, int], dealt: set[int]
    ) -> None:
        self.counter, self.known, self.dealt = counter, dict(inputs), dealt

    def of(self, atom: Atom) -> int:
        """The name of a variable, a new one for what has none; a literal gets one every time."""
        if isinstance(atom, compat.Literal):
            return next(self.counter)
        if atom not in self.known:
            self.known[atom] = next(self.counter)
        return self.known[atom]

    def follow(self, eqn: jex.JaxprEqn) -> None:
        """Outputs of a move are named like its operand; entrywise operations keep the expert."""
        primitive = eqn.primitive.name
        if primitive in MOVES:
            self.known[eqn.outvars[0]] = self.of(eqn.invars[0])
        elif primitive not in MIXES:
            shapes = {compat.shape_of(a) for a in eqn.invars if self.belongs(self._known(a))}
            self.dealt.update(self.of(v) for v in eqn.outvars if compat.shape_of(v) in shapes)

    def deal(self, eqn: jex.JaxprEqn) -> None:
        """The result of a grouped product belongs to the experts, row by row."""
        self.dealt.add(self.of(eqn.outvars[0]))

    def belongs(self, name: int | None) -> bool:
        """Whether the rows of an activation each belong to one expert."""
        return name in self.dealt

    def _known(self, atom: Atom) -> int | None:
        return None if isinstance(atom, compat.Literal) else self.known.get(atom)


@dataclass
class AxisTrace:
    """All uses and stacked axes found so far, per parameter; `flows` by primitive."""

    flows: Mapping[str, Flow]
    uses: dict[int, list[Use]] = field(default_factory=dict)
    stacked: dict[int, set[int]] = field(default_factory=dict)
    names: Names = field(default_factory=lambda: Names(itertools.count(), {}, set()))

    def run(
        self, jaxpr: compat.Jaxpr, args: Sequence[Refs], operands: Sequence[Atom] | None = None
    ) -> list[Refs]:
        """Walk a jaxpr; `operands` are the atoms outside that its inputs stand for, if known."""
        opened, _ = compat.open_jaxpr(jaxpr)
        outer = self.names
        known = dict(zip(opened.invars, map(outer.of, operands), strict=True) if operands else ())
        self.names = Names(outer.counter, known, outer.dealt)
        try:
            return walk(jaxpr, args, self._step, lambda value: ())
        finally:
            self.names = outer

    def _step(self, eqn: jex.JaxprEqn, refs: list[Refs]) -> list[Refs]:
        self.names.follow(eqn)
        if not any(refs):
            return [() for _ in eqn.outvars]
        return self.flows.get(eqn.primitive.name, used_up)(self, eqn, refs)

    def use(
        self,
        eqn: jex.JaxprEqn,
        refs: Refs,
        summed: Sequence[int] = (),
        shared: Sequence[int] = (),
        elementwise: bool = False,
        activation: Atom | None = None,
        dealt: Sequence[int] = (),
    ) -> None:
        """A use of a parameter, of which `activation` is the other factor.

        `dealt` are axes whose slices each meet some rows of it. What comes out, entry by entry,
        belongs to those slices: a product that meets it deals out nothing common.
        """
        name = None if activation is None else self.names.of(activation)
        if dealt and self.names.belongs(name):
            dealt = ()
        for ref in refs:
            origin = lambda axes, ref=ref: frozenset(o for a in axes for o in ref.axes[a])
            use = Use(
                primitive=eqn.primitive.name,
                source=compat.source_of(eqn),
                summed=origin(summed),
                shared=origin(shared),
                elementwise=elementwise,
                meets=name,
                dealt=origin(dealt),
            )
            uses = self.uses.setdefault(ref.leaf, [])
            if use not in uses:
                uses.append(use)

    def stack(self, refs: Refs, axis: int) -> None:
        """The slices of `axis` are used one by one, as the layers of a stack are."""
        for ref in refs:
            self.stacked.setdefault(ref.leaf, set()).update(ref.axes[axis])


# Flows of more than one primitive. Those of a single one stand beside its rule, in `rules`.


def moved(refs: Refs, axes: Callable[[Ref], Iterable[tuple[int, ...]]]) -> Refs:
    """The same parameters with the axes that `axes` returns."""
    return tuple(ref._replace(axes=tuple(axes(ref))) for ref in refs)


def used_up(trace: AxisTrace, eqn: jex.JaxprEqn, refs: list[Refs]) -> list[Refs]:
    """A primitive without a flow: it needs the weight dense."""
    for operand in refs:
        trace.use(eqn, operand)
    return [() for _ in eqn.outvars]


def same_axes(trace: AxisTrace, eqn: jex.JaxprEqn, refs: list[Refs]) -> list[Refs]:
    """Every output has the axes of the operand in its place."""
    return list(refs)


def elementwise(trace: AxisTrace, eqn: jex.JaxprEqn, refs: list[Refs]) -> list[Refs]:
    """The axes stay, unless a small weight meets a bigger activation."""
    out = compat.shape_of(eqn.outvars[0])
    remaining: Refs = ()
    for atom, operand in zip(eqn.invars, refs, strict=True):
        if operand and compat.shape_of(atom) != out:
            trace.use(eqn, operand, elementwise=True)
        else:
            remaining += operand
    return [remaining]


def first_operand(trace: AxisTrace, eqn: jex.JaxprEqn, refs: list[Refs]) -> list[Refs]:
    """Every output has the axes of the first operand."""
    return [refs[0] for _ in eqn.outvars]
