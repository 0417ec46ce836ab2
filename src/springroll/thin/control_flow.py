"""Programs inside the program: calls, loops and branches whose bodies see Factored weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from springroll import compat
from springroll.thin.factored_array import Factored
from springroll.thin.interpreter import Frame
from springroll.thin.product import marked_product, thin_product


def inline(frame: Frame, eqn: Any, *args: Any) -> list[Any]:
    """custom_jvp, custom_vjp and other calls: the body runs in place."""
    return frame.run(compat.inner_jaxpr(eqn), args)


def call(frame: Frame, eqn: Any, *args: Any) -> list[Any]:
    """jit: a product that was marked as one is called again, anything else runs in place."""
    spec = marked_product(eqn)
    out = None if spec is None else thin_product(frame, spec, eqn, *map(frame.joined, args))
    return inline(frame, eqn, *args) if out is None else out


def remat(frame: Frame, eqn: Any, *args: Any) -> list[Any]:
    """The rewritten body is a checkpoint again, so gradients still recompute it."""
    once, rebuild = distinct(args)
    body = lambda *a: frame.run(eqn.params["jaxpr"], rebuild(a))
    wrapped = jax.checkpoint(
        body, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"]
    )
    return wrapped(*once)


def scan(frame: Frame, eqn: Any, *args: Any) -> list[Any]:
    """Weights may be constants, unchanged carries, or stacked xs (any role on the scanned axis)."""
    p = eqn.params
    n_consts, n_carry = compat.scan_groups(eqn)
    consts, carry = args[:n_consts], list(args[n_consts : n_consts + n_carry])
    fixed = unchanged(p["jaxpr"], n_consts, n_carry)
    kept = {i: v for i, v in enumerate(carry) if isinstance(v, Factored) and i in fixed}
    moving = [i for i in range(n_carry) if i not in kept]
    start = [frame.dense(carry[i], eqn, "scan (a carry that changes)") for i in moving]
    stacks = [_scanned(x) for x in args[n_consts + n_carry :]]
    scanned, rebuild = distinct([s for s, _ in stacks])

    def body(state: list[Any], xs: list[Any]) -> tuple[list[Any], list[Any]]:
        carries = [kept[i] if i in kept else state[moving.index(i)] for i in range(n_carry)]
        slices = [make(x) for (_, make), x in zip(stacks, rebuild(xs), strict=True)]
        outs = frame.run(p["jaxpr"], [*consts, *carries, *slices])
        new = [frame.dense(outs[i], eqn, "scan (a carry)") for i in moving]
        return new, [frame.dense(y, eqn, "scan (an output)") for y in outs[n_carry:]]

    final, ys = lax.scan(
        body, start, scanned, length=p["length"], reverse=p["reverse"], unroll=p["unroll"]
    )
    return [*(kept[i] if i in kept else final[moving.index(i)] for i in range(n_carry)), *ys]


def distinct(tree: Any) -> tuple[list[Any], Callable[[Any], Any]]:
    """(the arrays of a tree, each once, how to rebuild the tree from them).

    Weights that share a factor go on sharing it in the body, so what an activation has in common
    with all of them is computed once.
    """
    leaves, structure = jax.tree.flatten(tree)
    first: dict[int, int] = {}
    places = [first.setdefault(id(leaf), len(first)) for leaf in leaves]
    once = [leaves[places.index(k)] for k in range(len(first))]
    return once, lambda new: jax.tree.unflatten(structure, [new[k] for k in places])


def _scanned(x: Any) -> tuple[Any, Any]:
    """(what lax.scan slices, how the body rebuilds the operand from a slice)."""
    if not isinstance(x, Factored):
        return x, lambda part: part
    sides = {"left": x.left, "right": x.right}
    sliced = {side: f for side, f in sides.items() if 0 in x.axes(side)}

    def make(part: tuple[Any, dict[str, Any]]) -> Factored:
        return dataclasses.replace(x, base=part[0], roles=x.roles[1:], **part[1])

    return (x.base, sliced), make


def unchanged(jaxpr: Any, n_before: int, n_carry: int) -> set[int]:
    """Which carries a loop body hands back as they came."""
    opened, _ = compat.open_jaxpr(jaxpr)
    carried = opened.invars[n_before : n_before + n_carry]
    return {i for i, (a, b) in enumerate(zip(carried, opened.outvars, strict=False)) if a is b}


def while_(frame: Frame, eqn: Any, *args: Any) -> list[Any]:
    p = eqn.params
    n_cond, n_body = p["cond_nconsts"], p["body_nconsts"]
    cond_consts, body_consts = args[:n_cond], args[n_cond : n_cond + n_body]
    carry = list(args[n_cond + n_body :])
    fixed = unchanged(p["body_jaxpr"], n_body, len(carry))
    kept = {i: v for i, v in enumerate(carry) if isinstance(v, Factored) and i in fixed}
    moving = [i for i in range(len(carry)) if i not in kept]
    start = [frame.dense(carry[i], eqn, "while (a carry that changes)") for i in moving]

    def carries(state: list[Any]) -> list[Any]:
        return [kept[i] if i in kept else state[moving.index(i)] for i in range(len(carry))]

    def more(state: list[Any]) -> Any:
        return frame.dense(frame.run(p["cond_jaxpr"], [*cond_consts, *carries(state)])[0], eqn)

    def body(state: list[Any]) -> list[Any]:
        outs = frame.run(p["body_jaxpr"], [*body_consts, *carries(state)])
        return [frame.dense(outs[i], eqn, "while (a carry)") for i in moving]

    final = lax.while_loop(more, body, start)
    return [kept[i] if i in kept else final[moving.index(i)] for i in range(len(carry))]


def cond(frame: Frame, eqn: Any, index: Any, *args: Any) -> list[Any]:
    def branch(jaxpr: Any) -> Any:
        return lambda *a: [frame.dense(out, eqn, "cond (an output)") for out in frame.run(jaxpr, a)]

    index = frame.dense(index, eqn)
    return lax.switch(index, [branch(j) for j in eqn.params["branches"]], *args)
