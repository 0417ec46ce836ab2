"""`factored(fn)`: run any unmodified JAX function on weights of the form base + thin term."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from springroll import compat
from springroll.errors import InputError
from springroll.thin.activations import MOVES
from springroll.thin.densify import DEFAULT_LIMIT, Policy
from springroll.thin.factored_array import Factored
from springroll.thin.interpreter import Frame
from springroll.thin.rules import INSIDE, RULES
from springroll.thin.trace import Call, Program, is_factored

MAY_MEET_CODES = MOVES | INSIDE | {"dynamic_slice", "slice", "unstack"}


def interpret(jaxpr: Any, args: Sequence[Any], policy: Policy) -> list[Any]:
    """Evaluate a jaxpr on values of which some are Factored; only their equations are rewritten."""
    opened, consts = compat.open_jaxpr(jaxpr)
    values = dict(zip([*opened.constvars, *opened.invars], [*consts, *args], strict=True))
    frame = Frame(policy, values, {}, interpret)
    for eqn in opened.eqns:
        operands = [frame.read(atom) for atom in eqn.invars]
        with compat.equation_context(eqn):
            out = None
            if any(isinstance(v, Factored) for v in operands):
                if eqn.primitive.name not in INSIDE:
                    operands = [frame.joined(v) for v in operands]
                rule = RULES.get(eqn.primitive.name)
                if eqn.primitive.name not in MAY_MEET_CODES and any(map(codes, operands)):
                    rule = None
                out = rule(frame, eqn, *operands) if rule else None
                if out is None:
                    operands = [frame.dense(v, eqn) for v in operands]
            if out is None:
                out = compat.bind(eqn, *operands)
        values.update(zip(eqn.outvars, out, strict=True))
        frame.producers.update((var, eqn) for var in eqn.outvars)
    return [frame.joined(frame.read(atom)) for atom in opened.outvars]


def factored(fn: Callable[..., Any], *, densify_limit: int | None = DEFAULT_LIMIT) -> Callable:
    """The same function, where array leaves of its arguments may be `Factored`.

    Arguments: arrays are traced; Python numbers, strings, None and callables stay as they are.
    Outputs are plain arrays. `jax.vmap`, `jax.jit` and `jax.grad` apply outside as usual: a
    population is a vmap over left, right and gain, and `base` is multiplied once for all members.

    `fn` is traced once per structure, static values and shapes, like a function under `jax.jit`.

    A weight that meets a primitive without a thin rule is formed in full. That is reported as a
    `DensifyWarning` up to `densify_limit` bytes per member and raises `InputError` above it
    (None: never raises).
    """

    program = Program(fn)

    @functools.wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        return run_program(program, Call.of(args, kwargs), Policy(densify_limit))

    return run


def run_program(program: Program, call: Call, policy: Policy) -> Any:
    """Check the Factored arguments, trace on dense shapes, interpret on the arguments."""
    for i in call.traced:
        if is_factored(call.leaves[i]):
            call.leaves[i] = prepare(call.leaves[i], call.paths[i])
    closed, tree = program.trace(call)
    outs = interpret(closed, call.arrays, policy)
    outs = [
        policy.densify(out, "return", "the function's output") if is_factored(out) else out
        for out in outs
    ]
    return jax.tree.unflatten(tree, outs)


def prepare(weight: Factored, path: str) -> Factored:
    """Check a Factored argument and make its base vary wherever its factors do (shard_map)."""
    check(weight, path)
    parts = jax.tree.leaves((weight.left, weight.right, weight.gain))
    wanted = frozenset[str]().union(*map(compat.varying, parts))
    base = compat.vary(weight.base, sorted(wanted))
    return dataclasses.replace(weight, base=base, path=path)


def check(weight: Factored, path: str) -> None:
    """Raise InputError unless roles, shapes and dtypes of a Factored fit together."""
    name = path or "a Factored argument"
    shape = tuple(weight.base.shape)
    if len(weight.roles) != len(shape) or set(weight.roles) - set("smn"):
        raise InputError(
            f"{name}: roles {weight.roles!r} do not fit a base of shape {shape}; give one of"
            " s, m, n per axis."
        )
    for side, factor in (("left", weight.left), ("right", weight.right)):
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
    wide = jnp.issubdtype(weight.dtype, jnp.integer) and weight.dtype.itemsize > 1
    if weight.lattice is None and wide:
        parts = jax.tree.leaves((weight.left, weight.right, weight.gain))
        if not all(jnp.issubdtype(p.dtype, jnp.integer) for p in parts):
            raise InputError(
                f"{name}: an {weight.dtype} base with real factors needs a lattice (how to round)."
            )


def codes(weight: Any) -> bool:
    """Whether an operand is a weight of integer codes with a real thin term in units of them.

    That is a weight stored in int8 and converted where it is used; until then it can only be moved.
    """
    if not isinstance(weight, Factored) or weight.lattice is not None:
        return False
    real = jnp.issubdtype(weight.left.dtype, jnp.inexact)
    return real and jnp.issubdtype(weight.dtype, jnp.integer)
