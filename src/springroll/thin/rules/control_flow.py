"""Programs inside the program: calls, loops and branches whose bodies see `Factored` weights."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
from jax import Array, lax
from jax.extend import core as jex

from springroll import compat
from springroll.thin.axis_trace import AxisTrace, Refs, moved
from springroll.thin.custom_product import marked_product, thin_product
from springroll.thin.factored_array import SIDES, Factored
from springroll.thin.interpreter import Frame, Operand, Outputs
from springroll.trees import PyTree


def inline(frame: Frame, eqn: jex.JaxprEqn, *args: Operand) -> Outputs:
    """custom_jvp, custom_vjp and other calls: the body runs in place."""
    return frame.run(compat.inner_jaxpr(eqn), args)


def call(frame: Frame, eqn: jex.JaxprEqn, *args: Operand) -> Outputs:
    """jit: a product that was marked as one is called again, anything else runs in place."""
    spec = marked_product(eqn)
    out = None if spec is None else thin_product(frame, spec, eqn, *map(frame.joined, args))
    return inline(frame, eqn, *args) if out is None else out


def call_flow(trace: AxisTrace, eqn: jex.JaxprEqn, refs: list[Refs]) -> list[Refs]:
    spec = marked_product(eqn)
    if spec is not None and not (refs[0] or any(refs[2:])):
        s, m = spec.axes("s"), spec.axes("m")
        trace.use(eqn, refs[1], summed=m, shared=s, activation=eqn.invars[0], dealt=s)
        if s:
            trace.names.deal(eqn)
        return [() for _ in eqn.outvars]
    return trace.run(compat.inner_jaxpr(eqn), refs, eqn.invars)


def remat(frame: Frame, eqn: jex.JaxprEqn, *args: Operand) -> Outputs:
    """The rewritten body is a checkpoint again, so gradients still recompute it."""
    once, rebuild = distinct(args)
    body = lambda *arrays: frame.run(eqn.params["jaxpr"], rebuild(arrays))
    wrapped = jax.checkpoint(
        body, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"]
    )
    return wrapped(*once)


def scan(frame: Frame, eqn: jex.JaxprEqn, *args: Operand) -> Outputs:
    """Weights may be constants, unchanged carries, or stacked xs (any role on the scanned axis)."""
    p = eqn.params
    n_consts, n_carry = compat.scan_groups(eqn)
    consts, carry = args[:n_consts], args[n_consts : n_consts + n_carry]
    unchanged_at = unchanged(p["jaxpr"], n_consts, n_carry)
    moving, start, all_carries = _split_carries(frame, eqn, carry, unchanged_at)
    stacks = [_scanned(x) for x in args[n_consts + n_carry :]]
    scanned, rebuild = distinct([s for s, _ in stacks])

    def body(state: list[Array], xs: list[Array]) -> tuple[list[Array], list[Array]]:
        slices = [take(x) for (_, take), x in zip(stacks, rebuild(xs), strict=True)]
        outs = frame.run(p["jaxpr"], [*consts, *all_carries(state), *slices])
        new = [frame.dense(outs[i], eqn, "scan (a carry)") for i in moving]
        return new, [frame.dense(y, eqn, "scan (an output)") for y in outs[n_carry:]]

    final, ys = lax.scan(
        body, start, scanned, length=p["length"], reverse=p["reverse"], unroll=p["unroll"]
    )
    return [*all_carries(final), *ys]


def scan_flow(trace: AxisTrace, eqn: jex.JaxprEqn, refs: list[Refs]) -> list[Refs]:
    jaxpr = eqn.params["jaxpr"]
    n_consts, n_carry = compat.scan_groups(eqn)
    unchanged_at = unchanged(jaxpr, n_consts, n_carry)
    carry = _unchanged_refs(refs[n_consts : n_consts + n_carry], unchanged_at)
    stacks = refs[n_consts + n_carry :]
    for operand in stacks:
        trace.stack(operand, 0)
    trace.run(jaxpr, [*refs[:n_consts], *carry, *(moved(s, lambda r: r.axes[1:]) for s in stacks)])
    return [*carry, *(() for _ in eqn.outvars[n_carry:])]


def distinct(tree: PyTree) -> tuple[list[Array], Callable[[Sequence[Array]], PyTree]]:
    """(the arrays of a tree, each once, how to rebuild the tree from them).

    Weights that share a factor go on sharing it in the body, so what an activation has in common
    with all of them is computed once.
    """
    leaves, structure = jax.tree.flatten(tree)
    first: dict[int, int] = {}
    places = [first.setdefault(id(leaf), len(first)) for leaf in leaves]
    once = [leaves[places.index(k)] for k in range(len(first))]
    return once, lambda new: jax.tree.unflatten(structure, [new[k] for k in places])


def _scanned(x: Operand) -> tuple[PyTree, Callable[[PyTree], Operand]]:
    """(what lax.scan slices, how the body rebuilds the operand from a slice)."""
    if not isinstance(x, Factored):
        return x, lambda part: part
    sliced = {side: x.factor(side) for side in SIDES if 0 in x.axes(side)}

    def take(part: tuple[Array, dict[str, Array]]) -> Factored:
        return dataclasses.replace(x, base=part[0], roles=x.roles[1:], **part[1])

    return (x.base, sliced), take


def unchanged(jaxpr: compat.Jaxpr, n_before: int, n_carry: int) -> set[int]:
    """Which carries a loop body returns as they came."""
    opened, _ = compat.open_jaxpr(jaxpr)
    carried = opened.invars[n_before : n_before + n_carry]
    return {i for i, (a, b) in enumerate(zip(carried, opened.outvars, strict=False)) if a is b}


def _split_carries(
    frame: Frame, eqn: jex.JaxprEqn, carry: Sequence[Operand], unchanged_at: set[int]
) -> tuple[list[int], list[Array], Callable[[Sequence[Array]], list[Operand]]]:
    """Weights that a loop does not change are constants of its body instead of carries.

    Returns the positions of the other carries, their start (densified where it must be), and how
    to put all carries together from their values.
    """
    weights = {i: v for i, v in enumerate(carry) if isinstance(v, Factored) and i in unchanged_at}
    moving = [i for i in range(len(carry)) if i not in weights]
    where = f"{eqn.primitive.name} (a carry that changes)"
    start = [frame.dense(carry[i], eqn, where) for i in moving]

    def all_carries(state: Sequence[Array]) -> list[Operand]:
        return [weights[i] if i in weights else state[moving.index(i)] for i in range(len(carry))]

    return moving, start, all_carries


def _unchanged_refs(carry: Sequence[Refs], unchanged_at: set[int]) -> list[Refs]:
    return [refs if i in unchanged_at else () for i, refs in enumerate(carry)]


def while_(frame: Frame, eqn: jex.JaxprEqn, *args: Operand) -> Outputs:
    """Weights may be constants or unchanged carries."""
    p = eqn.params
    n_cond, n_body = p["cond_nconsts"], p["body_nconsts"]
    cond_consts, body_consts = args[:n_cond], args[n_cond : n_cond + n_body]
    carry = args[n_cond + n_body :]
    unchanged_at = unchanged(p["body_jaxpr"], n_body, len(carry))
    moving, start, all_carries = _split_carries(frame, eqn, carry, unchanged_at)

    def goes_on(state: list[Array]) -> Array:
        outs = frame.run(p["cond_jaxpr"], [*cond_consts, *all_carries(state)])
        return frame.dense(outs[0], eqn)

    def body(state: list[Array]) -> list[Array]:
        outs = frame.run(p["body_jaxpr"], [*body_consts, *all_carries(state)])
        return [frame.dense(outs[i], eqn, "while (a carry)") for i in moving]

    return all_carries(lax.while_loop(goes_on, body, start))


def while_flow(trace: AxisTrace, eqn: jex.JaxprEqn, refs: list[Refs]) -> list[Refs]:
    p = eqn.params
    n_cond, n_body = p["cond_nconsts"], p["body_nconsts"]
    start = refs[n_cond + n_body :]
    carry = _unchanged_refs(start, unchanged(p["body_jaxpr"], n_body, len(start)))
    trace.run(p["cond_jaxpr"], [*refs[:n_cond], *carry])
    trace.run(p["body_jaxpr"], [*refs[n_cond : n_cond + n_body], *carry])
    return carry


def cond(frame: Frame, eqn: jex.JaxprEqn, index: Operand, *args: Operand) -> Outputs:
    """Every branch sees the weights; its outputs are arrays."""

    def branch(jaxpr: compat.Jaxpr) -> Callable[..., list[Array]]:
        return lambda *a: [frame.dense(out, eqn, "cond (an output)") for out in frame.run(jaxpr, a)]

    index = frame.dense(index, eqn)
    return lax.switch(index, [branch(j) for j in eqn.params["branches"]], *args)


def cond_flow(trace: AxisTrace, eqn: jex.JaxprEqn, refs: list[Refs]) -> list[Refs]:
    for branch in eqn.params["branches"]:
        trace.run(branch, refs[1:], eqn.invars[1:])
    return [() for _ in eqn.outvars]
