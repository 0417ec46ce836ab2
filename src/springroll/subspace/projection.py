"""Projectors, and the options of a low-rank optimizer: what is projected, on which side, how often.

A projector is the bases that turn a matrix gradient into a small one, and back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypedDict, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from springroll.deprecation import warn_renamed
from springroll.errors import InputError
from springroll.noise import counter
from springroll.noise.kinds import normal_from_bits
from springroll.quant.transformation import whole
from springroll.subspace.basis import Moments, Order, change_of_basis, rotate_moment
from springroll.subspace.matrix_view import (
    MatrixView,
    Rows,
    Side,
    matrix_views,
    one_of,
)
from springroll.subspace.per_path import PerPath, number_of, per_path, warn_capped
from springroll.subspace.stored_basis import (
    Basis,
    BasisBits,
    bits_of,
    checked_bits,
    floats,
    stored,
)
from springroll.thin.roles import WeightRole
from springroll.trees import PyTree, Select

Refresh = Literal["power", "svd", "random"]


class Projector(NamedTuple):
    """Orthonormal bases of the input side, of the output side, or of both.

    With only `left`, G (*stack, m, n) becomes PᵀG (*stack, r, n), with only `right` GQ (*stack, m,
    r), with both PᵀGQ (*stack, r, r). Bases are as they are kept, decoded where they are used.
    """

    left: Basis | None  # P (*stack, m, r)
    right: Basis | None  # Q (*stack, n, r)

    def down(self, gradient: Array) -> Array:
        """The small gradient, float32."""
        if self.left is not None:
            gradient = _product("...mr,...mn->...rn", self.left, gradient)
        if self.right is not None:
            gradient = _product("...mn,...nr->...mr", gradient, self.right)
        return gradient

    def up(self, small: Array) -> Array:
        """From the subspace back to (*stack, m, n), float32."""
        if self.left is not None:
            small = _product("...mr,...rn->...mn", self.left, small)
        if self.right is not None:
            small = _product("...mr,...nr->...mn", small, self.right)
        return small


def carry_over(new: Projector, old: Projector, moment: Array, order: Order, how: Moments) -> Array:
    """A moment of small gradients, from the coordinates of one projector to those of another."""
    if new.left is not None and old.left is not None:
        moment = rotate_moment(_change(new.left, old.left), moment, order, how)
    if new.right is not None and old.right is not None:
        change = _change(new.right, old.right)
        moment = jnp.matrix_transpose(
            rotate_moment(change, jnp.matrix_transpose(moment), order, how)
        )
    return moment


def _change(new: Basis, old: Basis) -> Array:
    return change_of_basis(floats(new), floats(old))


def _product(spec: str, a: Basis, b: Basis) -> Array:
    """einsum of a basis and a matrix with float32 sums, in bfloat16 if that is what both are."""
    a, b = floats(a), floats(b)
    dtype = jnp.bfloat16 if a.dtype == b.dtype == jnp.bfloat16 else jnp.float32
    return jnp.einsum(spec, a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.float32)


class ProjectionOptions(TypedDict, total=False):
    """Keywords that `galore`, `apollo` and `fira` share.

    refresh_interval: steps from one refresh of a projector to the next (200); like the rank one
        number, patterns on the parameters' paths with a number for each, {"*": 200, "*head": 50}
        (of several that match the last), or a function of the path.
    side: which side of a matrix gets short: its inputs "in", its outputs "out", the smaller of them
        "std" (inputs if equal), the larger "reverse_std", what is first or second in the layout
        "left" or "right", or both "full".
    refresh: where a new basis comes from. "power": one power step from the old one; "svd": the
        leading singular vectors of the present gradient; "random": nothing.
    moments: what a new basis does to the moments, "rotate", "fill", "keep" or "reset"; see
        `subspace.rotate_moment`.
    stagger: refresh the matrices in turns over the interval (after the first step) instead of all
        on one step.
    rows: without roles, whether the rows of a matrix are its inputs, "in", as in Flax, or its
        outputs, "out", as in PyTorch and in `springroll.models`. Leading axes are a stack of
        matrices, with a projector each.
    roles: of the axes, from `sr.discover`; where they are given, `rows` is not used.
    select: which parameters: a pattern on their paths or several, or a function path -> bool. By
        default all that the roles call low-rank, without roles all with two axes or more.
    basis_bits: per number of a basis: 32, 16 (bfloat16), or codes of 8 or 4. Bases are found in
        float32; with codes every use is of the decoded basis.
    seed: of random bases.
    """

    refresh_interval: PerPath
    side: Side
    refresh: Refresh
    moments: Moments
    stagger: bool
    rows: Rows
    roles: Mapping[str, WeightRole] | None
    select: Select
    basis_bits: BasisBits
    seed: int


@dataclass(frozen=True)
class Projection:
    """`ProjectionOptions`, all decided.

    Raises InputError for a rank or interval below one and for names that do not exist.
    """

    rank: PerPath
    refresh_interval: PerPath = 200
    side: Side = "in"
    refresh: Refresh = "power"
    moments: Moments = "rotate"
    stagger: bool = True
    rows: Rows = "in"
    roles: Mapping[str, WeightRole] | None = None
    select: Select = None
    basis_bits: BasisBits = 32
    seed: int = 0
    stored: bool = True  # else drawn anew whenever it is needed, the same for the interval

    def __post_init__(self) -> None:
        for name in ("rank", "refresh_interval"):
            object.__setattr__(self, name, per_path(getattr(self, name), name))
        object.__setattr__(self, "seed", whole(self.seed, "seed", least=None))
        object.__setattr__(self, "basis_bits", checked_bits(self.basis_bits))
        one_of(self.side, Side, "side")
        one_of(self.refresh, Refresh, "refresh")
        one_of(self.moments, Moments, "moments")
        one_of(self.rows, Rows, "rows")

    @classmethod
    def of(cls, rank: PerPath, *options: ProjectionOptions) -> Projection:
        """From options of which later ones win.

        `optax.inject_hyperparams` gives what a signature calls **options as one keyword of that
        name, which is opened here.
        """
        merged: dict[str, object] = {}
        for later in options:
            given: dict[str, object] = {**later}
            inside = given.pop("options", {})
            merged |= given | (inside if isinstance(inside, dict) else {})
        if "basis_dtype" in merged:
            warn_renamed("the option 'basis_dtype'", "'basis_bits'", stacklevel=3)
            merged["basis_bits"] = bits_of(cast(DTypeLike, merged.pop("basis_dtype")))
        return cls(rank, **merged)  # pyright: ignore[reportArgumentType]

    def check_side(self, method: str) -> None:
        """Raise InputError where a method that scales channels would project them away."""
        if self.side == "full":
            raise InputError(
                f"side is 'full'; {method} scales channels, project one side of the matrix"
            )

    def views(self, params: PyTree) -> list[MatrixView | None]:
        """A view per leaf, None for those that are not projected."""
        return matrix_views(params, select=self.select, roles=self.roles, rows=self.rows)

    def rank_of(self, view: MatrixView) -> int:
        """Its own rank: at most the smaller side of the matrix, with which nothing is lost."""
        return min(number_of(self.rank, view.path, "rank"), view.size("m"), view.size("n"))

    def warn_capped(self, views: Sequence[MatrixView | None]) -> None:
        """Say which ranks are above a side of their matrices."""
        ranks = [(v, number_of(self.rank, v.path, "rank"), self.rank_of(v)) for v in views if v]
        capped = [(v.path, v.shape, asked, rank) for v, asked, rank in ranks if asked > rank]
        warn_capped(capped, stacklevel=3)

    def interval_of(self, view: MatrixView) -> int:
        """Steps between two refreshes of its projector."""
        return number_of(self.refresh_interval, view.path, "refresh_interval")

    def low_shape(self, view: MatrixView) -> tuple[int, ...]:
        """The shape of the low-rank gradient."""
        left, right = view.sides(self.side)
        m, n, rank = view.size("m"), view.size("n"), self.rank_of(view)
        return (*view.stack, rank if left else m, rank if right else n)

    def start(self, view: MatrixView) -> Projector:
        """Random directions for the first gradient to take a power step from, otherwise zeros.

        Not orthonormal: the first step makes all bases anew before any is used.
        """
        normal = self.gaussian(view, 0, jnp.arange(math.prod(view.stack)))
        make = (lambda x: x) if self.refresh == "power" else jnp.zeros_like
        return jax.tree.map(
            lambda x: stored(make(x).reshape(*view.stack, *x.shape[1:]), self.basis_bits), normal
        )

    def drawn(self, view: MatrixView, step: Array, layer: Array | int = 0) -> Projector:
        """Gaussian projectors with entries of variance 1 / r: R is as long as G on average.

        Matrix j of a stack, counted from `layer` times the stack's size, has its own numbers.
        """
        matrices = math.prod(view.stack)
        numbers = layer * matrices + jnp.arange(matrices)
        normal = self.gaussian(view, step // self.interval_of(view), numbers)
        shorter = self.rank_of(view) ** -0.5
        return jax.tree.map(lambda x: x.reshape(*view.stack, *x.shape[1:]) * shorter, normal)

    def gaussian(self, view: MatrixView, epoch: Array | int, numbers: Array) -> Projector:
        """Standard normal (len(numbers), size, r) in place of bases, for those matrices of a stack.

        A function of seed, path, epoch and number, so it need not be stored. Counted noise: a
        tenth of the time of threefry, which APOLLO would take on every step.
        """
        seed = np.array([self.seed & 0xFFFFFFFF, self.seed >> 32 & 0xFFFFFFFF], np.uint32)
        rank = self.rank_of(view)

        def normal(role: str) -> Array:
            words = counter.stream(seed, epoch, f"{view.path}/{role}")
            bits = counter.bits(words, numbers.astype(jnp.uint32), view.size(role) * rank)
            return normal_from_bits(bits).reshape(-1, view.size(role), rank)

        left, right = view.sides(self.side)
        return Projector(normal("m") if left else None, normal("n") if right else None)
