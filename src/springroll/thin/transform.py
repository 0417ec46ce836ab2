"""`factored(fn)`: run any unmodified JAX function on weights of the form base + thin term."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend import core as jex

from springroll import compat
from springroll.errors import InputError, check_takes, expect, kind_of
from springroll.thin.densify import DEFAULT_LIMIT, Policy
from springroll.thin.factored_array import SIDES, Blocks, Factored, cast, computable
from springroll.thin.interpreter import Operand, interpret
from springroll.thin.rules import RULES
from springroll.trees import PyTree, is_numeric, path_of

UNSIGNED = jnp.dtype(jnp.float8_e8m0fnu)  # a float without a sign and without zero


@dataclass
class Call:
    """The arguments of one call: every leaf, and which of them are traced."""

    leaves: list[PyTree]
    tree: Hashable  # their structure
    paths: list[str]
    is_param: list[bool]  # leaves of the first positional argument
    traced: list[int]  # positions of arrays and Factored among the leaves

    @classmethod
    def of(cls, args: tuple[PyTree, ...], kwargs: dict[str, PyTree]) -> Call:
        flat, tree = jax.tree_util.tree_flatten_with_path((args, kwargs), is_leaf=is_factored)
        is_param = [path[0].idx == 0 and len(path) > 1 and path[1].idx == 0 for path, _ in flat]
        paths = [
            path_of(path[2:] if first else path[1:])
            for (path, _), first in zip(flat, is_param, strict=True)
        ]
        leaves = [leaf for _, leaf in flat]
        traced = [i for i, leaf in enumerate(leaves) if is_traced(leaf)]
        return cls(leaves, tree, paths, is_param, traced)

    @property
    def arrays(self) -> list[Operand]:
        """The traced leaves."""
        return [self.leaves[i] for i in self.traced]

    def with_arrays(self, arrays: tuple[Operand, ...]) -> Call:
        """The same call with other traced leaves."""
        leaves = list(self.leaves)
        for i, array in zip(self.traced, arrays, strict=True):
            leaves[i] = array
        return dataclasses.replace(self, leaves=leaves)


@dataclass
class Program:
    """A function that is traced once per structure, static values and shapes of its arguments."""

    fn: Callable[..., PyTree]
    flat: dict[Hashable, Callable[..., PyTree]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expect(callable(self.fn), "fn", self.fn, "a function of (params, *args)")

    def trace(self, call: Call) -> tuple[jex.ClosedJaxpr, Hashable]:
        """(jaxpr, output tree) of the function on the dense shapes of the arguments."""
        examples = [a.base if isinstance(a, Factored) else a for a in call.arrays]
        closed, shapes = jax.make_jaxpr(self._flat(call), return_shape=True)(*examples)
        return compat.prune(closed), jax.tree.structure(shapes)

    def _flat(self, call: Call) -> Callable[..., PyTree]:
        """fn of the traced leaves alone; the same object for equal static parts, so JAX caches."""
        traced = set(call.traced)
        static = [leaf for i, leaf in enumerate(call.leaves) if i not in traced]
        key = (call.tree, tuple(call.traced), tuple((type(v), repr_or_self(v)) for v in static))
        try:
            return self.flat.setdefault(key, _flatten(self.fn, call))
        except TypeError:  # an unhashable static argument: trace anew every time
            return _flatten(self.fn, call)


def _flatten(fn: Callable[..., PyTree], call: Call) -> Callable[..., PyTree]:
    statics = call.with_arrays((None,) * len(call.traced))  # pyright: ignore[reportArgumentType]

    @functools.wraps(fn)
    def flat(*arrays: jax.Array) -> PyTree:
        args, kwargs = jax.tree.unflatten(call.tree, statics.with_arrays(arrays).leaves)
        check_takes(fn, "fn", *args, **kwargs)
        result = fn(*args, **kwargs)
        for x in jax.tree.leaves(result):
            if not is_numeric(x):
                raise InputError(f"fn returned {kind_of(x)}; expected arrays")
        return result

    return flat


def repr_or_self(value: PyTree) -> Hashable:
    """Floats by their digits, so that 0.0 and -0.0 differ; anything else by itself."""
    return repr(value) if isinstance(value, float) else value


def is_factored(leaf: PyTree) -> bool:
    return isinstance(leaf, Factored)


def is_traced(leaf: PyTree) -> bool:
    """Arrays and Factored are traced; Python numbers, strings and callables stay as they are."""
    kinds = (Factored, jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)
    return isinstance(leaf, kinds)


def factored(
    fn: Callable[..., PyTree], *, densify_limit: int | None = DEFAULT_LIMIT
) -> Callable[..., PyTree]:
    """The same function, where array leaves of its arguments may be `Factored`.

    `jax.vmap`, `jax.jit` and `jax.grad` apply outside as usual: a population is a vmap over left,
    right and gain, and `base` is multiplied once for all members. `fn` is traced once per
    structure, static values and shapes, like a function under `jax.jit`.

    Args:
        fn: any JAX function. Arrays among its arguments are traced; Python numbers, strings, None
            and callables stay as they are.
        densify_limit: bytes per member up to which a weight that meets a primitive without a rule
            is formed in full, with a `DensifyWarning`; None for no limit.

    Returns:
        A function of the same arguments whose outputs are plain arrays.

    Raises:
        InputError: when it is called, if roles, shapes and dtypes of a `Factored` do not fit
            together, or if a weight above `densify_limit` would be formed in full.
    """
    program = Program(fn)

    @functools.wraps(fn)
    def run(*args: PyTree, **kwargs: PyTree) -> PyTree:
        return run_program(program, Call.of(args, kwargs), Policy(densify_limit))

    return run


def run_program(program: Program, call: Call, policy: Policy) -> PyTree:
    """Check the Factored arguments, trace on dense shapes, interpret on the arguments."""
    for i in call.traced:
        if is_factored(call.leaves[i]):
            call.leaves[i] = prepare(call.leaves[i], call.paths[i])
    closed, tree = program.trace(call)
    outs = [
        policy.densify(out, "return", "the function's output") if isinstance(out, Factored) else out
        for out in interpret(closed, call.arrays, policy, RULES)
    ]
    return jax.tree.unflatten(tree, outs)


def prepare(weight: Factored, path: str) -> Factored:
    """Check a Factored argument and make its base vary wherever its factors do (shard_map)."""
    check(weight, path)
    parts = jax.tree.leaves((weight.left, weight.right, weight.gain))
    mesh_axes = frozenset[str]().union(*map(compat.varying, parts))
    base = compat.vary(weight.base, sorted(mesh_axes))
    left, right = map(_computable, (weight.left, weight.right))
    return dataclasses.replace(weight, base=base, left=left, right=right, path=path)


def _computable(factor: Array | Blocks) -> Array | Blocks:
    """A factor in a type that JAX adds and multiplies, which holds it exactly."""
    if isinstance(factor, Blocks):
        return factor
    return cast(factor, computable(factor.dtype))


def check(weight: Factored, path: str) -> None:
    """Raise InputError unless roles, shapes and dtypes of a Factored fit together."""
    name = path or "a Factored argument"
    shape = tuple(weight.base.shape)
    if len(weight.roles) != len(shape) or set(weight.roles) - set("smn"):
        raise InputError(
            f"{name}: roles {weight.roles!r} do not fit a base of shape {shape}; give one of"
            " s, m, n per axis."
        )
    for side in SIDES:
        factor = weight.factor(side)
        expected = tuple(shape[i] for i in weight.axes(side))
        if tuple(factor.shape[:-1]) != expected or factor.ndim != len(expected) + 1:
            raise InputError(
                f"{name}: {side} has shape {tuple(factor.shape)}; with roles {weight.roles!r} it"
                f" must be {(*expected, 'rank')}."
            )
    if weight.left.shape[-1] != weight.right.shape[-1]:
        raise InputError(
            f"{name}: left has rank {weight.left.shape[-1]} and right {weight.right.shape[-1]};"
            " they must be equal."
        )
    if weight.rank == 0:
        raise InputError(f"{name}: the factors have rank 0; the rank must be at least 1.")
    if weight.gain is not None and jnp.shape(weight.gain) not in ((), (weight.rank,)):
        raise InputError(
            f"{name}: gain has shape {jnp.shape(weight.gain)}; it must be () or ({weight.rank},)."
        )
    _check_dtypes(weight, name)


def _check_dtypes(weight: Factored, name: str) -> None:
    """Raise InputError unless base + gain * left @ right.T has a meaning in the type of base."""
    dtypes = {"base": weight.dtype, "left": weight.left.dtype, "right": weight.right.dtype}
    if weight.gain is not None:
        dtypes["gain"] = jnp.result_type(weight.gain)
    is_a = lambda part, kind: jnp.issubdtype(dtypes[part], kind)
    for part, dtype in dtypes.items():
        if not (is_a(part, jnp.inexact) or is_a(part, jnp.signedinteger)) or dtype == UNSIGNED:
            raise InputError(
                f"{name}: {part} is {dtype}; expected floats, complex numbers or signed integers."
            )
        if is_a(part, jnp.complexfloating) and weight.lattice is not None:
            raise InputError(f"{name}: {part} is {dtype}; a lattice rounds real numbers only.")
        if is_a(part, jnp.complexfloating) and not is_a("base", jnp.complexfloating):
            raise InputError(
                f"{name}: {part} is {dtype} and base {dtypes['base']}, which has no room for"
                " imaginary parts; make the base complex or the factors real."
            )
    real = [part for part in dtypes if is_a(part, jnp.inexact)]
    codes = weight.dtype.itemsize == 1 and {"left", "right"} & {*real}
    if weight.lattice is None and is_a("base", jnp.integer) and real and not codes:
        raise InputError(
            f"{name}: an {weight.dtype} base with a {real[0]} in {dtypes[real[0]]} needs a lattice"
            " (how to round)."
        )
