"""Which weights are trained in a subspace, and which of them share one.

A projector belongs to an activation: the gradient of a weight is xᵀ dy, so the subspace that keeps
most of it is spanned by the inputs x, and every weight that meets the same x can use the same one
(q, k and v; gate and up). `streams_of` groups the discovered weights accordingly.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from springroll.errors import InputError
from springroll.subspace.per_path import PerPath, number_of, warn_capped
from springroll.thin.factored_array import Blocks
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
    rank: int

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
    def rank(self) -> int:
        """Columns of the projector."""
        return self.users[0].rank

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
    def input_axes(self) -> int:
        """How many axes of the projector are inputs."""
        return len(self.users[0].sizes("m"))

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
    turned = lambda a: a.transpose(*order, len(order))
    if isinstance(factor, Blocks):
        return Blocks(tuple(turned(factor.read(part)) for part in factor.parts))
    return turned(factor)


def streams_of(
    roles: WeightRoles,
    rank: PerPath,
    select: Select = None,
    own_experts: bool = False,
    refresh_interval: PerPath = 1,
) -> tuple[Stream, ...]:
    """The streams of the selected weights, in order of first appearance.

    Experts among which a common activation is dealt out (gate, up) share its projector, unless
    `own_experts`; experts that meet what only they have computed (down) have one each. Weights with
    another rank or another interval than others have a projector of their own.

    By default every weight that is only used in products and has more than `rank` inputs and
    outputs. A rank that is above a chosen weight's smaller side is that side, with a warning. A
    weight chosen by `select` that is a vector is an InputError, and so is a choice of nothing.
    """
    selected = selector(select, list(roles))
    chosen = [leaf for leaf in roles.values() if _chosen(leaf, rank, selected)]
    if not chosen:
        raise InputError(_nothing(roles, rank, selected))
    asked = {leaf.path: number_of(rank, leaf.path, "rank") for leaf in chosen}
    ranks = {leaf.path: min(asked[leaf.path], smaller_side(leaf)) for leaf in chosen}
    too_large = [leaf for leaf in chosen if asked[leaf.path] > ranks[leaf.path]]
    warn_capped([(x.path, x.shape, asked[x.path], ranks[x.path]) for x in too_large], stacklevel=4)
    groups: dict[tuple, list[ThinLeaf]] = {}
    for leaf in chosen:
        common = () if own_experts else leaf.dealt
        letters = "".join("n" if i in common else r for i, r in enumerate(leaf.roles or ""))
        thin = ThinLeaf(leaf.path, leaf.shape, letters, "", ranks[leaf.path])
        alone = len(leaf.meets) != 1 or leaf.meets[0] is None
        every = number_of(refresh_interval, leaf.path, "refresh_interval")
        key = (leaf.path if alone else leaf.meets, thin.sizes("sm"), thin.stacked, thin.rank, every)
        groups.setdefault(key, []).append(thin)
    return tuple(_stream(users) for users in groups.values())


def _stream(users: Sequence[ThinLeaf]) -> Stream:
    name = users[0].path
    return Stream(name, tuple(replace(user, stream=name) for user in users))


def _chosen(leaf: WeightRole, rank: PerPath, select: Chosen | None) -> bool:
    if select is None:
        products = bool(leaf.meets) and None not in leaf.meets
        if leaf.program_kind != "low-rank" or not products:
            return False
        return number_of(rank, leaf.path, "rank") < smaller_side(leaf)
    if not select(leaf.path):
        return False
    if leaf.program_kind != "low-rank":
        raise InputError(
            f"{leaf.path} {list(leaf.shape)} was selected for a projector but is {leaf.kind}:"
            f" {leaf.reason}. Leave it out of select."
        )
    return True


def _nothing(roles: WeightRoles, rank: PerPath, select: Chosen | None) -> str:
    if select is not None:
        return f"select chose none of the {len(roles)} parameters; it is called with their paths."
    thin = [leaf for leaf in roles.values() if leaf.program_kind == "low-rank"]
    if not thin:
        return "no parameter is a matrix in a product, so there is nothing to train in a subspace."
    widest = max(thin, key=smaller_side)
    inputs, outputs = _sides(widest)
    return (
        f"rank {number_of(rank, widest.path, 'rank')} is not below any matrix; the widest is"
        f" {widest.path} {list(widest.shape)} with {inputs} inputs and {outputs} outputs. Lower"
        " rank."
    )


def _sides(leaf: WeightRole) -> tuple[int, int]:
    """Inputs and outputs."""
    size = lambda letter: math.prod(leaf.shape[i] for i in axes_of(leaf.roles or "", letter))
    return size("m"), size("n")


def smaller_side(leaf: WeightRole) -> int:
    """The largest rank that its gradient can have."""
    return min(_sides(leaf))
