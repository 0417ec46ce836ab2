"""Which parameters are perturbed, and how: from their shapes, `sr.discover` or the user."""

import fnmatch
import functools
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import ParamSpec, TypeAlias, TypeVar, cast

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from springroll.deprecation import warn_renamed
from springroll.errors import InputError, nearest
from springroll.evolve.perturbation import Leaf, Perturbation, auto_mesh, values_path
from springroll.noise.kinds import Noise, noise_named
from springroll.quant.int8_weights import is_int8
from springroll.thin.discovery import perturbable
from springroll.thin.roles import WeightRole
from springroll.trees import KeyPath, PyTree, path_of

Roles: TypeAlias = Mapping[str, str | WeightRole]
"""What `sr.discover` returns, or path patterns (`fnmatch`) and the roles of what they match.

A role is "frozen", "dense", letters such as "mn", or "s" letters and then "d" ones for vectors in a
stack ("sd"). Later patterns win. Both may be joined: `{**sr.discover(...), "*norm*": "frozen"}`.
"""
P = ParamSpec("P")
R = TypeVar("R")


def default_roles(shape: tuple[int, ...]) -> str:
    """`mn` for a matrix, `smn` for a stack of them and so on, else none (dense)."""
    return "s" * (len(shape) - 2) + "mn" if len(shape) >= 2 else ""


def describe(
    params: PyTree,
    *,
    rank: int,
    roles: Roles | None = None,
    noise: str | Noise = "gaussian",
    antithetic: bool = True,
    integers: bool = False,
    mesh: jax.sharding.Mesh | None = None,
) -> Perturbation:
    """Decide for every parameter how it is perturbed.

    Parameters that are not floating are frozen; with `integers`, those that are not int8. So are
    empty ones. `Int8` weights are evolved like floats, their scale is frozen.

    Args:
        params: The parameters, arrays of any shapes.
        rank: Of the noise of a low-rank parameter.
        roles: See `Roles`; parameters that it does not name are decided by their shape
            (`default_roles`).
        noise: A name of `NOISE`, or a kind of noise.
        antithetic: Whether members come in pairs of opposite sign.
        integers: Whether int8 parameters are evolved and floating ones are not.
        mesh: With an axis "population"; None: one device.

    Raises:
        InputError: The roles are those of other parameters, a pattern matches nothing, letters do
            not fit the axes, or the rank is above min(m, n).
    """
    if rank < 1:
        raise InputError(f"rank is {rank}; expected an integer of at least 1")
    kind = noise_named(noise) if isinstance(noise, str) else noise
    check_roles(roles)
    paths = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_int8)
    all_leaves = lambda roles: [leaf for p, x in paths for leaf in _leaves(p, x, roles, integers)]
    fixed = frozenset(leaf.path for leaf in all_leaves({}) if leaf.kind == "frozen")
    leaves = all_leaves(roles or {})
    for pattern, role in (roles or {}).items():
        if isinstance(role, str):
            leaves = _override(leaves, pattern, role, fixed)
    for leaf in leaves:
        _check_rank(leaf, rank)
        if not integers:
            _check_int8(leaf)
    if all(leaf.kind == "frozen" for leaf in leaves):
        raise InputError(_nothing_left(leaves, integers))
    return Perturbation(tuple(leaves), rank, kind, antithetic, mesh=auto_mesh(mesh))


def check_roles(roles: Roles | None) -> None:
    """Raise InputError if `roles` is not what `Roles` says, such as the plan of `sr.plan`."""
    if roles is None:
        return
    if not isinstance(roles, Mapping):
        kind = f"{type(roles).__module__}.{type(roles).__qualname__}"
        raise InputError(
            f"roles is a {kind}; expected what sr.discover returns, or a mapping from path "
            "patterns to roles such as {'*norm*': 'frozen'}"
        )
    for path, role in roles.items():
        if not isinstance(role, str | WeightRole):
            raise InputError(
                f"the role of {path!r} is {role!r}; expected 'frozen', 'dense', letters such as "
                "'mn', or what sr.discover says of it"
            )


def plan_keyword(make: Callable[P, R]) -> Callable[P, R]:
    """Decorator: the function also takes `plan`, the old name of what sr.discover returns.

    `roles` may come with it, and overrides it. Each call warns in one line.
    """

    @functools.wraps(make)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        if "plan" in kwargs:
            warn_renamed(f"the keyword 'plan' of {make.__name__}", "'roles'")
            plan = cast(Roles | None, kwargs.pop("plan"))
            roles = cast(Roles | None, kwargs.get("roles"))
            check_roles(plan)
            # A pattern for the same path beside the plan's entry, which is not lost.
            beside = lambda path: f"[{path[0]}]{path[1:]}" if path in (plan or {}) else path
            patterns = {beside(path): role for path, role in (roles or {}).items()}
            kwargs["roles"] = {**(plan or {}), **patterns}
        return make(*args, **kwargs)

    return wrapper


def _leaves(path: KeyPath, x: PyTree, roles: Roles, integers: bool) -> tuple[Leaf, ...]:
    """The leaf, or the two of an `Int8`: its values are evolved like floats, its scale is not."""
    if not is_int8(x):
        return (_leaf(path_of(path), x, roles, integers),)
    if integers:
        raise InputError(
            f"{path_of(path)} is int8 with a scale per channel; sr.eggroll evolves it, the integer "
            "lattice is for plain int8 parameters"
        )
    real = jax.ShapeDtypeStruct(x.values.shape, jnp.float32)
    values = replace(_leaf(values_path(path), real, roles, False), dtype="int8")
    scale = path_of((*path, jax.tree_util.GetAttrKey("scale")))
    return values, Leaf(scale, tuple(x.scale.shape), x.scale.dtype.name, "frozen")


def _leaf(path: str, x: Array | jax.ShapeDtypeStruct, roles: Roles, integers: bool) -> Leaf:
    shape, dtype = tuple(jnp.shape(x)), jnp.result_type(x)
    if not is_evolved(dtype, integers) or 0 in shape:
        return Leaf(path, shape, dtype.name, "frozen")
    role = roles.get(path)
    discovered = any(isinstance(other, WeightRole) for other in roles.values())
    if isinstance(role, str) or not discovered:  # strings override what the shape says, later
        letters = default_roles(shape)
        return Leaf(path, shape, dtype.name, "low-rank" if letters else "dense", letters)
    if role is None or tuple(role.shape) != shape:
        known = f"{list(role.shape)} there" if role else "no such path"
        raise InputError(
            f"{path} {list(shape)} is not in what sr.discover returned ({known}); call sr.discover "
            "on these params"
        )
    kind = role.program_kind if integers else role.kind
    if kind == "low-rank":
        return Leaf(path, shape, dtype.name, "low-rank", role.roles or "")
    return Leaf(path, shape, dtype.name, "dense" if kind == "dense" else "frozen")


def is_evolved(dtype: DTypeLike, integers: bool) -> bool:
    """Whether parameters of this type are evolved: floats, or with `integers` int8."""
    return perturbable(dtype) and (dtype == jnp.int8) == integers


def _nothing_left(leaves: list[Leaf], integers: bool) -> str:
    """That all parameters stand still, and who would evolve them."""
    kinds = [(leaf, leaf.numbers) for leaf in leaves]
    others = [leaf for leaf, kind in kinds if kind is not None and is_evolved(kind, not integers)]
    hint = ""
    if others:
        which = "sr.eggroll evolves floats" if integers else "sr.lattice evolves int8"
        hint = f"; {others[0].path} is {others[0].dtype}: {which}"
    kind = "int8" if integers else "floating"
    return f"no parameter is left to evolve: all are frozen, empty or not {kind}{hint}"


def matches(path: str, pattern: str) -> bool:
    """Whether a pattern of `Roles` is about the parameter at `path`."""
    return path == pattern or fnmatch.fnmatchcase(path, pattern)


def _override(leaves: list[Leaf], pattern: str, role: str, fixed: Collection[str]) -> list[Leaf]:
    """The leaves with a pattern applied; those that are `fixed` by their type stay frozen."""
    matched = {leaf.path for leaf in leaves if matches(leaf.path, pattern)}
    if not matched:
        near = nearest(pattern, [leaf.path for leaf in leaves], cutoff=0.0)
        hint = f"; the nearest is {near!r}" if near else ""
        raise InputError(f"roles pattern {pattern!r} matches no parameter{hint}")
    if pattern in matched & set(fixed) and role != "frozen":
        leaf = next(leaf for leaf in leaves if leaf.path == pattern)
        raise InputError(
            f"{pattern} is {leaf.dtype}{list(leaf.shape)}, which cannot be evolved here, so it "
            f"cannot be {role!r}; sr.eggroll evolves floats, sr.lattice int8"
        )
    moves = matched - set(fixed)
    return [_with_role(leaf, role) if leaf.path in moves else leaf for leaf in leaves]


def _with_role(leaf: Leaf, role: str) -> Leaf:
    if role == "frozen":
        return replace(leaf, kind="frozen")
    if role == "dense":
        return replace(leaf, kind="dense", roles="s" * leaf.stacked)
    if (
        role
        and len(role) == len(leaf.shape)
        and role == "s" * role.count("s") + "d" * role.count("d")
    ):
        return replace(leaf, kind="dense", roles="s" * role.count("s"))
    if set(role) <= set("smn") and len(role) == len(leaf.shape) and {"m", "n"} <= set(role):
        return replace(leaf, kind="low-rank", roles=role)
    raise InputError(
        f"{leaf.path}: role {role!r} does not fit shape {list(leaf.shape)}; expected 'frozen', "
        f"'dense' or {len(leaf.shape)} letters: out of s, m, n with at least one m and one n, or "
        "some s and then d"
    )


def _check_int8(leaf: Leaf) -> None:
    if leaf.dtype != "int8" or leaf.kind == "frozen":
        return
    if leaf.kind != "low-rank" or leaf.roles.lstrip("s") not in ("mn", "nm"):
        raise InputError(
            f"{leaf.path}: int8 weights {list(leaf.shape)} are perturbed by low-rank noise of "
            f"matrices, role {'s' * (len(leaf.shape) - 2)}mn, or not at all; they are "
            f"{leaf.roles if leaf.kind == 'low-rank' else leaf.kind!r} here"
        )


def _check_rank(leaf: Leaf, rank: int) -> None:
    if leaf.kind != "low-rank":
        return
    m, n = (
        math.prod(s for s, r in zip(leaf.shape, leaf.roles, strict=True) if r == letter)
        for letter in "mn"
    )
    if rank > min(m, n):
        raise InputError(
            f"{leaf.path}: rank {rank} is above min(m, n) = {min(m, n)} of shape "
            f"{list(leaf.shape)}; take at most {min(m, n)}, or in Python also "
            f"roles={{{leaf.path!r}: 'dense'}}"
        )
