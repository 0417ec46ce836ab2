"""`discover`: read from the program alone how each parameter can be perturbed.

Two passes. `AxisTrace` follows every parameter to where it is used and so proposes roles; then the
interpreter runs abstractly with those roles, and whatever it would densify becomes "dense".
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from springroll import compat
from springroll.thin.axis_trace import AxisTrace, Ref, Use
from springroll.thin.densify import Densified, Policy
from springroll.thin.factored_array import Factored, Lattice
from springroll.thin.interpreter import Operand
from springroll.thin.roles import Kind, WeightRole, WeightRoles
from springroll.thin.rules import RULES
from springroll.thin.transform import UNSIGNED, Call, Program, run_program
from springroll.trees import PyTree, path_of

SMALL = 4096  # numbers per layer, for weights that are only used elementwise


def discover(
    fn: Callable[..., PyTree], params: PyTree, *args: PyTree, **kwargs: PyTree
) -> WeightRoles:
    """How each parameter of fn(params, *args, **kwargs) can be perturbed; nothing is computed.

    An axis that a matrix product sums over (or a lookup indexes) gets role m, the axes it produces
    n, an axis that a scan walks or that stays apart in a batched product s. Roles serve all uses of
    a parameter if any choice does.

    Args:
        fn: any JAX function; it is traced once.
        params: a tree of arrays or `jax.ShapeDtypeStruct`s of any shape.
        *args: the other arguments: trees of arrays or `jax.ShapeDtypeStruct`s; Python values stay
            as they are.
        **kwargs: likewise.

    Returns:
        Parameter path -> `WeightRole`, in tree-flatten order.

    >>> import jax.numpy as jnp
    >>> roles = discover(lambda p, x: x @ p["w"] + p["b"][None],
    ...                  {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}, jnp.ones((2, 4)))
    >>> roles["w"].roles, roles["b"].kind
    ('mn', 'dense')
    """
    program = Program(fn)
    params = jax.tree.map(_as_array, params)
    call = Call.of((params, *args), kwargs)
    params_at = [k for k, i in enumerate(call.traced) if call.is_param[i]]
    closed, _ = program.trace(call)
    used = compat.used_inputs(closed)
    trace = AxisTrace({name: rule.flow for name, rule in RULES.items()})
    inputs = [
        (Ref(k, tuple((i,) for i in range(a.ndim))),) if k in params_at else ()
        for k, a in enumerate(call.arrays)
    ]
    trace.run(closed, inputs)
    choices = {
        k: candidates(call.arrays[k].shape, trace.uses.get(k, []), trace.stacked.get(k, set()))
        for k in params_at
        if used[k] and perturbable(call.arrays[k].dtype)
    }
    roles, reports = settle_roles(program, call, choices)
    leaves = [
        weight_role(call, k, used[k], trace.uses.get(k, []), roles.get(k), reports)
        for k in params_at
    ]
    return WeightRoles(tuple(_as_evolved(leaves, params)))


def _as_array(x: PyTree) -> PyTree:
    """Python floats are parameters too; other Python values may decide what the program is."""
    return np.asarray(x, jnp.result_type(float)) if type(x) is float else x


def _as_evolved(leaves: list[WeightRole], params: PyTree) -> Iterator[WeightRole]:
    """The roles as sr.eggroll takes them: beside floats, int8 stands still.

    Not so the values of `quant.Int8` nodes, which stand for floats; there the scale stands still.
    """
    is_codes = lambda node: getattr(node, "codes_of_floats", False)
    nodes = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_codes)
    coded = {
        path_of((*path, *rest))
        for path, node in nodes
        if is_codes(node)
        for rest, _ in jax.tree_util.tree_leaves_with_path(node)
    }
    moves = [leaf for leaf in leaves if leaf.kind not in ("frozen", "unused")]
    floats = any(leaf.path in coded or leaf.dtype != "int8" for leaf in moves)
    for leaf in leaves:
        if leaf in moves and leaf.path in coded and leaf.dtype != "int8":
            yield replace(leaf, kind="frozen", reason="the scale of int8 weights", roles=None)
        elif leaf in moves and leaf.path not in coded and leaf.dtype == "int8" and floats:
            why = "int8 beside floats: sr.eggroll evolves those, sr.lattice int8"
            yield replace(leaf, kind="frozen", reason=why, integer_kind=leaf.kind)
        else:
            yield leaf


def perturbable(dtype: DTypeLike) -> bool:
    """Floats that have a sign, and int8 (weights on the lattice)."""
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.dtype(dtype) != UNSIGNED
    return dtype == jnp.int8


def candidates(shape: Sequence[int], uses: Sequence[Use], stacked: set[int]) -> list[str]:
    """Role strings worth trying, best first; none if fewer than two axes remain to factor.

    A small weight that is only added or multiplied elementwise is a bias in other clothes.
    """
    shared = stacked.union(*(use.shared for use in uses))
    free = [i for i in range(len(shape)) if i not in shared]
    wide = {i for i in free if shape[i] > 1}
    added = uses and all(use.elementwise for use in uses)
    if len(wide) < 2 or (added and math.prod(shape[i] for i in free) <= SMALL):
        return []
    splits = [set(use.summed) & set(free) for use in uses]
    splits.append(set(free) - {max(wide)})
    choices = []
    for m in splits:
        roles = "".join("s" if i in shared else "m" if i in m else "n" for i in range(len(shape)))
        if m & wide and wide - m and roles not in choices:
            choices.append(roles)
    return choices


def settle_roles(
    program: Program, call: Call, choices: dict[int, list[str]]
) -> tuple[dict[int, str], list[Densified]]:
    """The first candidate of each parameter that nothing densifies; the reports of the others."""
    open_choices = {k: list(c) for k, c in choices.items() if c}
    first_reports: dict[str, Densified] = {}
    while True:
        roles = {k: c[0] for k, c in open_choices.items()}
        reports = {r.path: r for r in reversed(dry_run(program, call, roles))}
        for path, report in reports.items():
            first_reports.setdefault(path, report)
        blocked = [k for k in roles if call.paths[call.traced[k]] in reports]
        if not blocked:
            return roles, list(first_reports.values())
        for k in blocked:
            open_choices[k].pop(0)
            if not open_choices[k]:
                del open_choices[k]


def dry_run(program: Program, call: Call, roles: dict[int, str]) -> list[Densified]:
    """Interpret abstractly with rank-one factors; what would have been densified, in order."""
    shapes = [rank_one(a, roles[k]) if k in roles else a for k, a in enumerate(call.arrays)]
    policy = Policy(limit=None, quiet=True)

    def run(*arrays: Operand) -> PyTree:
        return run_program(program, call.with_arrays(arrays), policy)

    jax.eval_shape(run, *shapes)
    return policy.reports


def rank_one(array: Operand, roles: str) -> Factored:
    """The shapes of a rank-one Factored around a parameter."""

    def zeros(carried: str) -> Array:
        sizes = (n for n, role in zip(array.shape, roles, strict=True) if role in carried)
        return jnp.zeros((*sizes, 1), array.dtype)

    lattice = Lattice(2.0**-8) if jnp.issubdtype(array.dtype, jnp.integer) else None
    base = jax.ShapeDtypeStruct(array.shape, array.dtype)
    around = lambda base: Factored(base, zeros("sm"), zeros("sn"), None, roles, lattice)
    return jax.eval_shape(around, base)


def weight_role(
    call: Call,
    k: int,
    used: bool,
    uses: list[Use],
    roles: str | None,
    reports: list[Densified],
) -> WeightRole:
    array, path = call.arrays[k], call.paths[call.traced[k]]
    report = next((r for r in reports if r.path == path), None)
    kind: Kind
    formed = False
    if not used:
        kind, reason = "unused", "no output depends on it"
    elif not perturbable(array.dtype):
        kind, reason = "frozen", f"{array.dtype} is neither a float nor int8"
        if jnp.issubdtype(array.dtype, jnp.complexfloating):
            reason += "; two real arrays in its place would be evolved"
    elif roles is not None:
        kind, reason = "low-rank", ""
    elif report is not None:
        kind, reason = "dense", f"consumed by '{report.primitive}' at {report.source}"
        formed = True
    elif uses and all(use.elementwise for use in uses) and len(array.shape) > 1:
        kind, reason = "dense", f"small and only used elementwise: {uses[0]}"
    else:
        kind, reason = "dense", "a vector or scalar (of a stack or by itself)"
    return WeightRole(
        path=path,
        shape=tuple(array.shape),
        dtype=str(array.dtype),
        roles=roles if kind == "low-rank" else None,
        kind=kind,
        reason=reason,
        uses=tuple(dict.fromkeys(map(str, uses))),
        meets=tuple(dict.fromkeys(use.meets for use in uses)),
        dealt=tuple(sorted(frozenset.intersection(*(u.dealt for u in uses)))) if uses else (),
        formed=formed,
    )
