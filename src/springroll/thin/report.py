"""`explain`: the roles of all parameters as a table for people."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from springroll.thin.discovery import discover
from springroll.thin.roles import WeightRole, WeightRoles
from springroll.trees import PyTree

if TYPE_CHECKING:
    from rich.table import Table


def explain(fn: Callable[..., PyTree], params: PyTree, *args: PyTree, **kwargs: PyTree) -> Table:
    """A rich table: each parameter, its shape, how it is perturbed, where and why.

    "noise" is the number of random numbers per population member at rank 1.

    Args:
        fn: any JAX function of (params, *args, **kwargs); see `discover`.
        params: a tree of arrays or `jax.ShapeDtypeStruct`s.
        *args: the other arguments.
        **kwargs: likewise.

    Returns:
        A `rich.table.Table`, to be printed with `rich.print`.
    """
    return table(discover(fn, params, *args, **kwargs))


def table(roles: WeightRoles) -> Table:
    """The rich table of all roles."""
    from rich.table import Table

    out = Table(title="How each parameter is perturbed", caption=_totals(roles))
    for name in ("parameter", "shape", "perturbed", "roles", "noise", "where"):
        out.add_column(name, justify="right" if name == "noise" else "left", overflow="fold")
    for leaf in roles.values():
        shape = f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        where = leaf.reason or (leaf.uses[0] if leaf.uses else "")
        out.add_row(
            leaf.path, shape, leaf.kind, leaf.roles or "", f"{noise_numbers(leaf):,}", where
        )
    return out


def noise_numbers(leaf: WeightRole, rank: int = 1) -> int:
    """Random numbers that one member needs for this parameter."""
    if leaf.kind == "dense":
        return math.prod(leaf.shape)
    if leaf.kind != "low-rank" or leaf.roles is None:
        return 0
    side = lambda carried: math.prod(
        n for n, role in zip(leaf.shape, leaf.roles or "", strict=True) if role in carried
    )
    return rank * (side("sm") + side("sn"))


def _totals(roles: WeightRoles) -> str:
    numbers = sum(math.prod(leaf.shape) for leaf in roles.values())
    noise = sum(noise_numbers(leaf) for leaf in roles.values())
    return f"{len(roles)} parameters, {numbers:,} numbers; {noise:,} random numbers per member"
