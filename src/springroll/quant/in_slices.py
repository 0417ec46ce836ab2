"""An optimizer's update on coded state, one layer of a stack at a time.

A compiler that is given a whole update decodes all moments first and codes them last; in between
they exist in float32 all together, more memory than 8-bit state saves. So the update is traced, and
for a stacked parameter (layers, ..., n) whose step is computed number by number from its gradient,
weight and moments, and from scalars, a loop over the layers decodes, steps and codes one layer. The
step replaces the gradient in its buffer. Learning rates, counts and global norms are scalars, and
are computed once. Parameters that are not stacked or small, and transformations that look at a
matrix as a whole (Muon), are updated at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from springroll import compat
from springroll.quant.root_companding import Quantized, dequantize, requantize

MIN_SIZE = 1 << 20  # a smaller stack is not worth a loop

# What computes each number of the result from the numbers at the same place.
ELEMENTWISE = frozenset(
    "abs add add_any and atan2 cbrt ceil clamp convert_element_type copy copy_p cos div eq erf "
    "exp exp2 expm1 floor ge gt integer_pow is_finite le log log1p logistic lt max min mul ne neg "
    "nextafter not or pow reduce_precision rem round rsqrt select_n sign sin sqrt square "
    "stop_gradient sub tan tanh xor".split()
)


class Op:
    """An equation of the update, or (without one) an input; its value once known."""

    def __init__(self, eqn: Any, args: Sequence[Any], outs: Sequence[Any]) -> None:
        self.eqn, self.args = eqn, args
        self.avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in outs]
        self.values: list[Any] = []


@dataclasses.dataclass(frozen=True)
class Node:
    """One result of an operation."""

    op: Op
    which: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.op.avals[self.which].shape


def is_coded(x: Any) -> bool:
    return isinstance(x, Quantized)


def update_in_slices(
    update: Callable[[Any, Any], tuple[Any, Any]],
    updates: Any,
    state: Any,
    min_size: int = MIN_SIZE,
) -> tuple[Any, Any]:
    """`update(updates, decoded state) -> (updates, state)`, with codes in and codes out."""
    leaves, structure = jax.tree.flatten(state, is_leaf=is_coded)
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) if is_coded(x) else x for x in leaves]
    traced, out = jax.make_jaxpr(update, return_shape=True)(updates, structure.unflatten(shapes))
    given = [*jax.tree.leaves(updates), *leaves]
    sources = [Op(None, (), [var]) for var in traced.jaxpr.invars]
    steps = len(given) - len(leaves)
    results = _graph(traced, [Node(op) for op in sources])
    held = dict(zip(sources, given, strict=True))
    new: list[Any] = [None] * len(results)
    for i in range(steps):
        if (loop := _loop(results, sources, steps, i, leaves, min_size)) is not None:
            for at, value in zip(loop, _run(results, sources, held, loop, steps), strict=True):
                new[at] = value
    for i, node in enumerate(results):
        if new[i] is None:
            value = _whole(node, held)
            old = given[i]
            new[i] = requantize(old, value) if i >= steps and is_coded(old) else value
    after = jax.tree.structure(out[1])
    return jax.tree.structure(out[0]).unflatten(new[:steps]), after.unflatten(new[steps:])


def _graph(closed: Any, args: Sequence[Any]) -> list[Any]:
    """The results of a closed jaxpr as nodes or constants, calls of jitted functions opened."""
    jaxpr, consts = compat.open_jaxpr(closed)
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    read = lambda atom: atom.val if isinstance(atom, compat.Literal) else known[atom]
    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        if eqn.primitive.name in ("jit", "pjit"):
            made = _graph(compat.inner_jaxpr(eqn), operands)
        else:
            op = Op(eqn, operands, eqn.outvars)
            made = [Node(op, k) for k in range(len(eqn.outvars))]
        known.update(zip(eqn.outvars, made, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _whole(node: Any, held: dict[Op, Any]) -> Any:
    """The value of a node in its full shape, computed once."""
    if not isinstance(node, Node):
        return node
    pending = [node.op]
    while pending:  # a stack: what an operation needs goes on top of it
        op = pending[-1]
        before = [a.op for a in op.args if isinstance(a, Node) and not a.op.values]
        if op.values:
            pending.pop()
        elif before:
            pending.extend(before)
        else:
            op.values = _computed(op, [_known(a) for a in op.args], held)
    return _known(node)


def _known(x: Any) -> Any:
    return x.op.values[x.which] if isinstance(x, Node) else x


def _computed(op: Op, args: Sequence[Any], held: dict[Op, Any]) -> list[Any]:
    if op.eqn is None:
        return [dequantize(held[op]) if is_coded(held[op]) else held[op]]
    with compat.equation_context(op.eqn):
        return compat.bind(op.eqn, *args)


def _loop(
    results: list[Any], sources: list[Op], steps: int, i: int, leaves: list[Any], min_size: int
) -> list[int] | None:
    """The results that are computed together with step `i` in a loop; None without a loop."""
    shape = sources[i].avals[0].shape
    reached = _reached(results[i], shape)
    if len(shape) < 3 or shape[0] == 1 or np.prod(shape) < min_size or reached is None:
        return None
    loop = [i, *(at for at in range(steps, len(results)) if sources[at] in reached)]
    for at in loop:
        node = results[at]
        same = isinstance(node, Node) and node.op.avals[node.which] == sources[at].avals[0]
        if not same or _reached(node, shape) is None:
            return None
    return loop if any(is_coded(leaves[at - steps]) for at in loop[1:]) else None


def _reached(node: Any, shape: tuple[int, ...]) -> set[Op] | None:
    """The inputs of this shape that a node follows from number by number; None if not so."""
    found: set[Op] = set()
    pending, seen = [node], set()
    while pending:
        node = pending.pop()
        if _shape(node) not in ((), shape):
            return None
        if not isinstance(node, Node) or node.shape == () or node in seen:
            continue
        seen.add(node)
        op = node.op
        if op.eqn is None:
            found.add(op)
        elif not (_is_fill(op) or _is_elementwise(op)):
            return None
        pending.extend(op.args)
    return found


def _is_elementwise(op: Op) -> bool:
    return op.eqn.primitive.name in ELEMENTWISE


def _shape(x: Any) -> tuple[int, ...]:
    return x.shape if isinstance(x, Node) else np.shape(x)


def _is_fill(op: Op) -> bool:
    """A scalar spread over an array."""
    return op.eqn.primitive.name == "broadcast_in_dim" and _shape(op.args[0]) == ()


def _run(
    results: list[Any],
    sources: list[Op],
    held: dict[Op, Any],
    loop: list[int],
    steps: int,
) -> list[Any]:
    """The results `loop`: the loop over their leading axis."""
    layers = results[loop[0]].shape[0]
    start = [held[sources[at]] for at in loop]
    for at in loop:  # scalars of all kinds, computed once, before the loop
        _prepare(results[at], held)

    def body(k: Array, carry: list[Any]) -> list[Any]:
        # Everything is read before anything is written, else XLA copies the stacks.
        read = lax.optimization_barrier([_take(x, k) for x in carry])
        memo = {
            Node(sources[at]): dequantize(x) if is_coded(x) else x
            for at, x in zip(loop, read, strict=True)
        }
        parts = [_slice(results[at], k, held, memo) for at in loop]
        coded = [
            requantize(old, part, part=k) if is_coded(old) else part
            for old, part in zip(read, parts, strict=True)
        ]
        return [_put(x, part, k) for x, part in zip(carry, coded, strict=True)]

    with jax.named_scope("update_in_slices"):
        done = lax.fori_loop(0, layers, body, start)
    return [
        dataclasses.replace(x, draws=x.draws + np.uint32(1))
        if is_coded(x) and x.draws is not None
        else x
        for x in done
    ]


def _prepare(node: Any, held: dict[Op, Any]) -> None:
    pending, seen = [node], set()
    while pending:
        node = pending.pop()
        if not isinstance(node, Node) or node in seen:
            continue
        seen.add(node)
        if node.shape == ():
            _whole(node, held)
        elif node.op.eqn is not None:
            pending.extend(node.op.args)


def _slice(node: Any, k: Any, held: dict[Op, Any], memo: dict[Node, Any]) -> Any:
    """Layer `k` of a node, with a leading axis of 1; scalars as they are."""
    if not isinstance(node, Node):
        return _take(node, k) if np.ndim(node) else node
    if node.shape == ():
        return _known(node)
    if node not in memo:
        op = node.op
        if op.eqn is None:
            part = _take(held[op], k)
            memo[node] = dequantize(part) if is_coded(part) else part
        elif _is_fill(op):
            scalar = jnp.asarray(_known(op.args[0]), op.avals[0].dtype)
            memo[node] = jnp.broadcast_to(scalar, (1, *node.shape[1:]))
        else:
            args = [_slice(a, k, held, memo) for a in op.args]
            (memo[node],) = _computed(op, args, held)
    return memo[node]


def _take(x: Any, k: Array) -> Any:
    cut = lambda a: lax.dynamic_slice_in_dim(a, k, 1)
    if not is_coded(x):
        return cut(x)
    return dataclasses.replace(x, codes=cut(x.codes), scales=cut(x.scales))


def _put(x: Any, part: Any, k: Array) -> Any:
    put = lambda a, b: lax.dynamic_update_slice_in_dim(a, b, k, 0)
    if not is_coded(x):
        return put(x, part)
    return dataclasses.replace(x, codes=put(x.codes, part.codes), scales=put(x.scales, part.scales))
