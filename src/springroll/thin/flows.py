"""Where the axes of every parameter go: a walk over the jaxpr that follows them.

Each value of the program is a tuple of `Ref`s, the parameters that it is made of by moves that
keep a thin term thin. `FLOWS` says, per primitive, how the axes move or how they are used.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from springroll import compat
from springroll.thin.activations import Names
from springroll.thin.control_flow import unchanged
from springroll.thin.product import marked_product
from springroll.thin.ragged import is_plain
from springroll.thin.reshape import reshape_groups


class Ref(NamedTuple):
    """A parameter under way: for each present axis, the original axes that it came from."""

    leaf: int
    axes: tuple[tuple[int, ...], ...]


Refs = tuple[Ref, ...]


class Use(NamedTuple):
    """One place where a parameter is used up, in terms of its original axes."""

    primitive: str
    source: str
    summed: frozenset[int] = frozenset()  # contracted or looked up
    shared: frozenset[int] = frozenset()  # batch axes
    elementwise: bool = False  # broadcast against a bigger activation
    meets: int | None = None  # the activation that it multiplies (see `activations`)
    # Batch axes (experts) among which the rows of one common activation are dealt out.
    dealt: frozenset[int] = frozenset()

    def __str__(self) -> str:
        return f"{self.primitive} at {self.source}"


@dataclass
class Walk:
    """All uses and stacked axes found so far, per parameter."""

    uses: dict[int, list[Use]] = field(default_factory=dict)
    stacked: dict[int, set[int]] = field(default_factory=dict)
    names: Names = field(default_factory=lambda: Names(itertools.count(), {}, set()))

    def run(
        self, jaxpr: Any, ins: Sequence[Refs], operands: Sequence[Any] | None = None
    ) -> list[Refs]:
        """Walk a jaxpr; `operands` are the atoms outside that its inputs stand for, if known."""
        opened, _ = compat.open_jaxpr(jaxpr)
        outer = self.names
        known = dict(zip(opened.invars, map(outer.of, operands), strict=True) if operands else ())
        self.names = Names(outer.counter, known, outer.dealt)
        try:
            return self._equations(opened, ins)
        finally:
            self.names = outer

    def _equations(self, opened: Any, ins: Sequence[Refs]) -> list[Refs]:
        env: dict[Any, Refs] = dict(zip(opened.invars, ins, strict=True))
        read = lambda atom: () if isinstance(atom, compat.Literal) else env.get(atom, ())
        for eqn in opened.eqns:
            refs = [read(atom) for atom in eqn.invars]
            self.names.follow(eqn)
            if any(refs):
                flow = FLOWS.get(eqn.primitive.name, used_up)
                env.update(zip(eqn.outvars, flow(self, eqn, refs), strict=True))
        return [read(atom) for atom in opened.outvars]

    def use(
        self,
        eqn: Any,
        refs: Refs,
        summed: Sequence[int] = (),
        shared: Sequence[int] = (),
        elementwise: bool = False,
        met: Any = None,
        dealt: Sequence[int] = (),
    ) -> None:
        """A use of a parameter; `met` is the activation (an atom) that it multiplies.

        `dealt` are axes whose slices each meet some rows of it. What comes out, entry by entry,
        belongs to those slices: a product that meets it deals out nothing common.
        """
        name = None if met is None else self.names.of(met)
        if dealt and self.names.belongs(name):
            dealt = ()
        for ref in refs:
            origin = lambda axes, ref=ref: frozenset(o for a in axes for o in ref.axes[a])
            source = compat.source_of(eqn)
            use = Use(
                eqn.primitive.name,
                source,
                origin(summed),
                origin(shared),
                elementwise,
                name,
                origin(dealt),
            )
            found = self.uses.setdefault(ref.leaf, [])
            if use not in found:
                found.append(use)

    def stack(self, refs: Refs, axis: int) -> None:
        for ref in refs:
            self.stacked.setdefault(ref.leaf, set()).update(ref.axes[axis])


Flow = Callable[[Walk, Any, list[Refs]], list[Refs]]


def moved(refs: Refs, axes: Callable[[Ref], Sequence[tuple[int, ...]]]) -> Refs:
    return tuple(ref._replace(axes=tuple(axes(ref))) for ref in refs)


def used_up(walk: Walk, eqn: Any, refs: list[Refs]) -> list[Refs]:
    """A primitive without a flow: the weight is needed whole."""
    for operand in refs:
        walk.use(eqn, operand)
    return [() for _ in eqn.outvars]


def same_axes(walk: Walk, eqn: Any, refs: list[Refs]) -> list[Refs]:
    """Elementwise: the axes stay, unless a small weight meets a bigger activation."""
    out = eqn.outvars[0].aval.shape
    kept: Refs = ()
    for atom, operand in zip(eqn.invars, refs, strict=True):
        if operand and atom.aval.shape != out:
            walk.use(eqn, operand, elementwise=True)
        else:
            kept += operand
    return [kept]


def each_operand(walk: Walk, eqn: Any, refs: list[Refs]) -> list[Refs]:
    return list(refs)


def concatenate(walk: Walk, eqn: Any, refs: list[Refs]) -> list[Refs]:
    return [tuple(ref for operand in refs for ref in operand)]


def stack(walk: Walk, eqn: Any, refs: list[Refs]) -> list[Refs]:
    axis = eqn.params["axis"]
    lifted = lambda r: [*r.axes[:axis], (), *r.axes[axis:]]
    return [tuple(ref for operand in refs for ref in moved(operand, lifted))]


def unstack(walk: Walk, eqn: Any, refs: list[Refs]) -> list[Refs]:
    axis = eqn.params["axis"]
    walk.stack(refs[0], axis)
    layer = moved(refs[0], lambda r: [*r.axes[:axis], *r.axes[axis + 1 :]])
    return [layer for _ in eqn.outvars]


def transpose(walk: Walk, eqn: Any, refs: list[Refs]) -> list[Refs]:
    return [moved(refs[0], lambda r: [r.axes[i] for i in eqn.params["permutation"]])]


def dropped(name: str) -> Flow:
    """squeeze and reduce_sum: some axes go."""

    def flow(walk: Walk, eqn: Any, refs: list[Refs]) -> list[Refs]:
        gone = {d % eqn.invars[0].aval.ndim for d in eqn.params[name]}
        return [moved(refs[0], lambda r: [a for i, a in enumerate(r.axes) if i not in gone])]

    return flow


def reshape(walk: Walk, eqn: Any, refs: list[Refs]) -> list[Refs]:
    sizes = eqn.params["new_sizes"]
    groups = reshape_groups(eqn.invars[0].aval.shape, sizes)

    def axes(ref: Ref) -> list[tuple[int, ...]]:
        new: list[tuple[int, ...]] = [()] * len(sizes)
        for olds, news in groups:
            for j in news:
                new[j] = tuple(o for i in olds for o in ref.axes[i])
        return new

    return [moved(refs[0], axes)]


def broadcast_in_dim(walk: Walk, eqn: Any, refs: list[Refs]) -> list[Refs]:
    dims = eqn.params["broadcast_dimensions"]
    back = {d: i for i, d in enumerate(dims)}
    rank = len(eqn.params["shape"])
    return [moved(refs[0], lambda r: [r.axes[back[d]] if d in back else () for d in range(rank)])]


def window(walk: Walk, eqn: Any, refs: list[Refs]) -> list[Refs]:
    """slice and dynamic_slice: one entry of an axis is a layer of a stack or a looked-up row."""
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    picked = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if b == 1 < a]
    left = [i for i, size in enumerate(after) if size > 1]
    traced = [a for a in eqn.invars[1:] if not isinstance(a, compat.Literal)]
    if picked and len(left) < 2 and traced:
        walk.use(eqn, refs[0], summed=picked)
        return [()]
    for axis in picked:
        walk.stack(refs[0], axis)
    return [moved(refs[0], lambda r: [() if i in picked else a for i, a in enumerate(r.axes)])]


def pad(walk: Walk, eqn: Any, refs: list[Refs]) -> list[Refs]:
    return [refs[0]]


def split(walk: Walk, eqn: Any, refs: list[Refs]) -> list[Refs]:
    return [refs[0] for _ in eqn.outvars]


def dot_general(walk: Walk, eqn: Any, refs: list[Refs]) -> list[Refs]:
    summed, batch = eqn.params["dimension_numbers"]
    for operand, c, b, met in zip(refs, summed, batch, reversed(eqn.invars), strict=True):
        walk.use(eqn, operand, summed=c, shared=b, met=met)
    return [()]


def gather(walk: Walk, eqn: Any, refs: list[Refs]) -> list[Refs]:
    dn = eqn.params["dimension_numbers"]
    if eqn.invars[1].aval.ndim > 1:
        walk.use(eqn, refs[0], summed=dn.start_index_map, shared=dn.operand_batching_dims)
        return [()]
    kept = [i for i in range(eqn.invars[0].aval.ndim) if i not in dn.collapsed_slice_dims]
    if sum(eqn.invars[0].aval.shape[i] > 1 for i in kept) < 2:
        walk.use(eqn, refs[0], summed=dn.start_index_map)
        return [()]
    for axis in dn.collapsed_slice_dims:
        walk.stack(refs[0], axis)
    return [moved(refs[0], lambda r: [r.axes[i] for i in kept])]


def conv(walk: Walk, eqn: Any, refs: list[Refs]) -> list[Refs]:
    p = eqn.params
    if refs[0] or p["feature_group_count"] != 1 or p["batch_group_count"] != 1:
        return used_up(walk, eqn, refs)
    walk.use(eqn, refs[1], summed=p["dimension_numbers"].rhs_spec[1:], met=eqn.invars[0])
    return [()]


def ragged_dot(walk: Walk, eqn: Any, refs: list[Refs]) -> list[Refs]:
    if refs[0] or not is_plain(eqn):
        return used_up(walk, eqn, refs)
    walk.use(eqn, refs[1], summed=(1,), shared=(0,), met=eqn.invars[0], dealt=(0,))
    walk.names.deal(eqn)
    return [()]


def call(walk: Walk, eqn: Any, refs: list[Refs]) -> list[Refs]:
    spec = marked_product(eqn)
    if spec is not None and not (refs[0] or any(refs[2:])):
        s, m = spec.axes("s"), spec.axes("m")
        walk.use(eqn, refs[1], summed=m, shared=s, met=eqn.invars[0], dealt=s)
        if s:
            walk.names.deal(eqn)
        return [() for _ in eqn.outvars]
    return walk.run(compat.inner_jaxpr(eqn), refs, eqn.invars)


def scan(walk: Walk, eqn: Any, refs: list[Refs]) -> list[Refs]:
    jaxpr = eqn.params["jaxpr"]
    n_consts, n_carry = compat.scan_groups(eqn)
    fixed = unchanged(jaxpr, n_consts, n_carry)
    carry = _fixed(refs[n_consts : n_consts + n_carry], fixed)
    stacks = refs[n_consts + n_carry :]
    for operand in stacks:
        walk.stack(operand, 0)
    walk.run(jaxpr, [*refs[:n_consts], *carry, *(moved(s, lambda r: r.axes[1:]) for s in stacks)])
    return [*carry, *(() for _ in eqn.outvars[n_carry:])]


def while_(walk: Walk, eqn: Any, refs: list[Refs]) -> list[Refs]:
    p = eqn.params
    n_cond, n_body = p["cond_nconsts"], p["body_nconsts"]
    start = refs[n_cond + n_body :]
    carry = _fixed(start, unchanged(p["body_jaxpr"], n_body, len(start)))
    walk.run(p["cond_jaxpr"], [*refs[:n_cond], *carry])
    walk.run(p["body_jaxpr"], [*refs[n_cond : n_cond + n_body], *carry])
    return carry


def _fixed(carry: Sequence[Refs], fixed: set[int]) -> list[Refs]:
    return [refs if i in fixed else () for i, refs in enumerate(carry)]


def cond(walk: Walk, eqn: Any, refs: list[Refs]) -> list[Refs]:
    for branch in eqn.params["branches"]:
        walk.run(branch, refs[1:], eqn.invars[1:])
    return [() for _ in eqn.outvars]


def shard_map(walk: Walk, eqn: Any, refs: list[Refs]) -> list[Refs]:
    walk.run(eqn.params["jaxpr"], refs, eqn.invars)
    return [() for _ in eqn.outvars]


FLOWS: dict[str, Flow] = {
    "add": same_axes,
    "add_any": same_axes,
    "all_gather": each_operand,
    "all_gather_invariant": each_operand,
    "broadcast_in_dim": broadcast_in_dim,
    "checkpoint": call,
    "closed_call": call,
    "composite": call,
    "concatenate": concatenate,
    "cond": cond,
    "conv_general_dilated": conv,
    "convert_element_type": each_operand,
    "copy": each_operand,
    "copy_p": each_operand,
    "core_call": call,
    "custom_jvp_call": call,
    "custom_vjp_call": call,
    "custom_vmap_call": call,
    "device_put": each_operand,
    "div": same_axes,
    "dot_general": dot_general,
    "dynamic_slice": window,
    "eval_jaxpr": call,
    "gather": gather,
    "jit": call,
    "mul": same_axes,
    "mesh_cast": each_operand,
    "name": each_operand,
    "neg": each_operand,
    "optimization_barrier": each_operand,
    "pad": pad,
    "pcast": each_operand,
    "pjit": call,
    "pvary": each_operand,
    "ragged_dot_general": ragged_dot,
    "reduce_precision": each_operand,
    "reduce_sum": dropped("axes"),
    "remat2": call,
    "reshard": each_operand,
    "reshape": reshape,
    "rev": each_operand,
    "scan": scan,
    "shard_map": shard_map,
    "sharding_constraint": each_operand,
    "slice": window,
    "split": split,
    "squeeze": dropped("dimensions"),
    "stack": stack,
    "stop_gradient": each_operand,
    "sub": same_axes,
    "tile": each_operand,
    "transpose": transpose,
    "unstack": unstack,
    "while": while_,
}
