"""Rows of a population: the one forward pass of everything that runs members.

A row is one use of one member: its batch, one of its episodes, one of its texts. Rows stand in
groups. A group holds the low-rank factors of one antithetic pair, and each of its rows a sign: +1
and -1 for the two members of the pair, 0 for the unperturbed weights. Base weights are shared by
all rows, factors are read once per group, and no weight is formed per member.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import Array

from springroll.evolve.perturbation import Factors, Kind, Perturbation
from springroll.thin.transform import factored
from springroll.trees import PyTree, map_named, named_leaves

Axes = int | tuple[int | None, ...]  # of every argument of a row, as `jax.vmap` takes them


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Groups:
    """The factors of G groups of rows. Made by `Members.groups`."""

    factors: Factors  # the axis that `perturbation.pair_axes` names counts groups
    sigma: Array  # () float32
    perturbation: Perturbation = dataclasses.field(metadata={"static": True})
    rank_first: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def count(self) -> int:
        """G."""
        axes = self.perturbation.pair_axes()
        path, (factor, *_) = next(iter(self.factors.items()))
        return factor.shape[axes[path]]

    def each_row(
        self,
        function: Callable[..., PyTree],
        params: PyTree,
        sign: Array,
        *rows: PyTree,
        in_axes: Axes = 0,
        out_axes: int | tuple[int, ...] = 0,
        params_axes: PyTree = None,
    ) -> PyTree:
        """`function(weights, *row)` of every row, `weights` with the member's thin terms attached.

        A `jax.vmap` over groups and inside it one over the rows of a group.

        Args:
            function: Takes `sr.factored` itself where it computes with the weights.
            params: The parameters that the factors perturb.
            sign: (G, rows of a group) float32, or (rows of a group,) if all groups have the same.
            rows: What differs between rows; the axes `in_axes` and `in_axes` + 1 of the whole are
                groups and rows. None: the same for all rows.
            in_axes: One for all of `rows`, or one each.
            out_axes: Where the result has its axes of groups and rows.
            params_axes: None, or a tree like `params` that is 0 where a parameter leads with axes
                of groups and rows.
        """

        def one(factors: Factors, sign: Array, params: PyTree, *row: PyTree) -> PyTree:
            if self.rank_first:
                back = self.perturbation.pair_axes()
                factors = {
                    path: tuple(jnp.moveaxis(x, back[path], -1) for x in group)
                    for path, group in factors.items()
                }
            return function(self.perturbation.attach(params, factors, sign, self.sigma), *row)

        axes = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(rows)
        by_row = jax.vmap(one, (None, 0, params_axes, *axes), out_axes)
        by_sign = 0 if sign.ndim == 2 else None
        by_group = jax.vmap(
            by_row, (self.perturbation.pair_axes(), by_sign, params_axes, *axes), out_axes
        )
        return by_group(self.factors, sign, params, *rows)

    def only(self, kind: Kind) -> "Groups":
        """The same for the parameters of one kind; the others are not perturbed."""
        rest = lambda leaf: leaf if leaf.kind == kind else replace(leaf, kind="frozen")
        leaves = tuple(rest(leaf) for leaf in self.perturbation.leaves)
        perturbation = replace(self.perturbation, leaves=leaves)
        factors = {leaf.path: self.factors[leaf.path] for leaf in perturbation.evolved}
        return replace(self, factors=factors, perturbation=perturbation)

    def map_factors(self, function: Callable[[str, Array], Array]) -> "Groups":
        """`function(path, factor)` in the place of every factor."""
        factors = {
            path: tuple(function(path, x) for x in group) for path, group in self.factors.items()
        }
        return replace(self, factors=factors)

    def with_rank_first(self) -> "Groups":
        """Low-rank factors with the axis of ranks right behind that of groups.

        A group's vectors then lie in one piece, which is faster where rows are small and called
        many times.
        """
        axes = self.perturbation.pair_axes()
        moved = self.map_factors(lambda path, x: jnp.moveaxis(x, -1, axes[path] + 1))
        return replace(moved, rank_first=True)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PreparedRows:
    """Rows that are called many times, such as those of episodes. Made by `prepare_rows`.

    What does not change between calls is made once: factors are gathered and laid out, and weights
    with full-rank noise are formed. Thin terms are not.
    """

    groups: Groups  # of the low-rank parameters
    sign: Array  # (G, rows of a group) float32
    params: PyTree  # the parameters; those in `formed` lead with the axes of `sign`
    formed: frozenset[str] = dataclasses.field(metadata={"static": True})

    def call(self, function: Callable[..., PyTree], *rows: PyTree) -> PyTree:
        """`function(weights, *row)` of every row; `rows` lead with the axes of `sign`."""
        params_axes = map_named(lambda path, _: 0 if path in self.formed else None, self.params)
        thin = factored(function)
        return self.groups.each_row(thin, self.params, self.sign, *rows, params_axes=params_axes)


def prepare_rows(params: PyTree, groups: Groups, sign: Array) -> PreparedRows:
    """Rows of `groups` ready to be called many times.

    Args:
        params: The parameters that `groups` perturb.
        sign: (G, rows of a group) float32.
    """
    full = groups.only("dense")
    formed = frozenset(full.factors)
    dtypes = {path: x.dtype for path, x in named_leaves(params).items()}
    low_rank = groups.only("low-rank").with_rank_first()
    low_rank = low_rank.map_factors(lambda path, x: x.astype(dtypes[path]))
    weights = {}
    if formed:
        pick = lambda weights: {
            path: x for path, x in named_leaves(weights).items() if path in formed
        }
        weights = full.each_row(pick, params, sign)
    params = map_named(lambda path, x: weights.get(path, x), params)
    return PreparedRows(low_rank, sign, params, formed)
