"""Which weights are trained in a subspace, and which of them share one.

A projector belongs to an activation: the gradient of a weight is xᵀ dy, so the subspace that keeps
most of it is spanned by the inputs x, and every weight that meets the same x can use the same one
(q, k and v; gate and up). `streams_of` groups the discovered weights accordingly.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax

from springroll.errors import InputError
from springroll.thin.roles import WeightRole, WeightRoles
from springroll.trees import PyTree, Select, selector

Chosen = Callable[[str], bool]


@dataclass(frozen=True)
class ThinLeaf:
    """A weight whose gradient is kept in a subspace of its inputs."""

    path: str
    shape: tuple[int, ...]
    roles: str  # as in `Factored`: m inputs, n outputs, s one subspace each
    stream: str  # whose projector it uses: the path of that stream's first weight

    @property
    def stacked(self) -> bool:
        return self.roles[0] == "s"

    def sizes(self, letters: str) -> tuple[int, ...]:
        """The sizes of the axes with these roles; those of the first letter come first."""
        return tuple(self.shape[i] for i in axes_of(self.roles, letters))

    @property
    def inputs(self) -> int:
        return math.prod(self.sizes("m"))

    @property
    def outputs(self) -> int:
        return math.prod(self.sizes("n"))


@dataclass(frozen=True)
class Stream:
    """An activation's projector: one orthonormal basis (inputs, rank) per stacked slice."""

    name: str
    users: tuple[ThinLeaf, ...]

    @property
    def depth(self) -> int:
        """Layers that are refreshed one by one: the first axis if it is stacked, or 1."""
        return self.users[0].shape[0] if self.stacked else 1

    @property
    def stacked(self) -> bool:
        return self.users[0].stacked

    @property
    def sizes(self) -> tuple[int, ...]:
        """The axes of the projector before the rank: stacked ones, then inputs."""
        return self.users[0].sizes("sm")

    @property
    def bases(self) -> tuple[int, int, int]:
        """(depth, bases per layer, inputs): the projector as matrices."""
        first = self.users[0]
        return self.depth, math.prod(first.sizes("s")) // self.depth, first.inputs


def axes_of(roles: str, letters: str) -> tuple[int, ...]:
    """The axes with these roles; those of the first letter come first."""
    return tuple(i for letter in letters for i, role in enumerate(roles) if role == letter)


def place(factor: PyTree, roles: str, letters: str) -> PyTree:
    """P ("sm") or Sᵀ ("sn") with its axes in the order of the weight, as `Factored` wants it."""
    axes = axes_of(roles, letters)
    order = [axes.index(i) for i in sorted(axes)]
    if order == sorted(order):
        return factor
    return jax.tree.map(lambda a: a.transpose(*order, len(order)), factor)


def streams_of(
    roles: WeightRoles, rank: int, select: Select = None, own_experts: bool = False
) -> tuple[Stream, ...]:
    """The streams of the selected weights, in order of first appearance.

    Experts among which a common activation is dealt out (gate, up) share its projector, unless
    `own_experts`; experts that meet what only they have computed (down) have one each.

    By default every weight that is only used in products and has more than `rank` inputs and
    outputs. A weight chosen by `select` that is a vector or too small is an InputError, and so is
    a choice of nothing.
    """
    if rank < 1:
        raise InputError(f"rank is {rank}; expected at least 1.")
    selected = selector(select, list(roles))
    chosen = [leaf for leaf in roles.values() if _chosen(leaf, rank, selected)]
    if not chosen:
        raise InputError(_nothing(roles, rank, selected))
    groups: dict[tuple, list[ThinLeaf]] = {}
    for leaf in chosen:
        common = () if own_experts else leaf.dealt
        letters = "".join("n" if i in common else r for i, r in enumerate(leaf.roles or ""))
        thin = ThinLeaf(leaf.path, leaf.shape, letters, "")
        alone = len(leaf.meets) != 1 or leaf.meets[0] is None
        key = (leaf.path if alone else leaf.meets, thin.sizes("sm"), thin.stacked)
        groups.setdefault(key, []).append(thin)
    return tuple(_stream(users) for users in groups.values())


def _stream(users: Sequence[ThinLeaf]) -> Stream:
    name = users[0].path
    named = (ThinLeaf(user.path, user.shape, user.roles, name) for user in users)
    return Stream(name, tuple(named))


def _chosen(leaf: WeightRole, rank: int, select: Chosen | None) -> bool:
    if select is None:
        products = bool(leaf.meets) and None not in leaf.meets
        return leaf.program_kind == "low-rank" and products and rank < smaller_side(leaf)
    if not select(leaf.path):
        return False
    if leaf.program_kind != "low-rank":
        raise InputError(
            f"{leaf.path} {list(leaf.shape)} was selected for a projector but is {leaf.kind}:"
            f" {leaf.reason}. Leave it out of select."
        )
    if rank > smaller_side(leaf):
        raise InputError(
            f"{leaf.path} {list(leaf.shape)}: rank {rank} is above its matrix of"
            f" {_inputs(leaf)} inputs and {_outputs(leaf)} outputs; lower rank or leave it out of"
            " select."
        )
    return True


def _nothing(roles: WeightRoles, rank: int, select: Chosen | None) -> str:
    if select is not None:
        return f"select chose none of the {len(roles)} parameters; it is called with their paths."
    thin = [leaf for leaf in roles.values() if leaf.program_kind == "low-rank"]
    if not thin:
        return "no parameter is a matrix in a product, so there is nothing to train in a subspace."
    widest = max(thin, key=smaller_side)
    return (
        f"rank {rank} is not below any matrix; the widest is {widest.path} {list(widest.shape)}"
        f" with {_inputs(widest)} inputs and {_outputs(widest)} outputs. Lower rank."
    )


def _inputs(leaf: WeightRole) -> int:
    return ThinLeaf(leaf.path, leaf.shape, leaf.roles or "", "").inputs


def _outputs(leaf: WeightRole) -> int:
    return ThinLeaf(leaf.path, leaf.shape, leaf.roles or "", "").outputs


def smaller_side(leaf: WeightRole) -> int:
    return min(_inputs(leaf), _outputs(leaf))
