"""An optimizer's update on coded state, one layer of a stack at a time.

A compiler that is given a whole update decodes all moments first and codes them last; in between
they exist in float32 all together, more memory than 8-bit state saves. So the update is traced, and
for a stacked parameter (layers, ..., n) whose step is computed number by number from its gradient,
weight and moments, and from scalars, a loop over the layers decodes, steps and codes one layer. The
step replaces the gradient in its buffer. Learning rates, counts and global norms are scalars, and
are computed once. Parameters that are not stacked or small, and transformations that look at a
matrix as a whole (Muon), are updated at once.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend import core as jex
from jax.typing import ArrayLike

from springroll import compat
from springroll.quant.root_companding import Quantized, dequantize, requantize
from springroll.thin.walk import walk
from springroll.trees import PyTree

MIN_SIZE = 1 << 20  # a smaller stack is not worth a loop

# What computes each number of the result from the numbers at the same place.
ELEMENTWISE = frozenset(
    "abs add add_any and atan2 cbrt ceil clamp convert_element_type copy copy_p cos div eq erf "
    "exp exp2 expm1 floor ge gt integer_pow is_finite le log log1p logistic lt max min mul ne neg "
    "nextafter not or pow reduce_precision rem round rsqrt select_n sign sin sqrt square "
    "stop_gradient sub tan tanh xor".split()
)

Stored: TypeAlias = Array | Quantized
Value: TypeAlias = "Node | ArrayLike"


class Op:
    """An equation of the update, or (without one) an input; its values once computed."""

    def __init__(
        self, eqn: jex.JaxprEqn | None, args: Sequence[Value], outs: Sequence[jex.Var]
    ) -> None:
        self.eqn, self.args = eqn, args
        self.avals = [jax.ShapeDtypeStruct(compat.shape_of(v), compat.dtype_of(v)) for v in outs]
        self.values: list[Array] = []

    @property
    def is_elementwise(self) -> bool:
        return self.eqn is not None and self.eqn.primitive.name in ELEMENTWISE

    @property
    def is_fill(self) -> bool:
        """Whether it spreads a scalar over an array."""
        name = None if self.eqn is None else self.eqn.primitive.name
        return name == "broadcast_in_dim" and _shape(self.args[0]) == ()


@dataclasses.dataclass(frozen=True)
class Node:
    """One result of an operation."""

    op: Op
    which: int = 0

    @property
    def aval(self) -> jax.ShapeDtypeStruct:
        return self.op.avals[self.which]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.aval.shape


@dataclasses.dataclass(frozen=True)
class Update:
    """A traced update: position by position its inputs, what they hold, and its results.

    The first are the gradients and the steps that replace them, then comes the state.
    """

    inputs: list[Op]
    stored: dict[Op, Stored]
    results: list[Value]


def is_coded(x: PyTree) -> bool:
    return isinstance(x, Quantized)


def update_in_slices(
    update: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    updates: PyTree,
    state: PyTree,
    min_size: int = MIN_SIZE,
) -> tuple[PyTree, PyTree]:
    """`update(updates, decoded state) -> (updates, state)`, with codes in and codes out.

    Stacks of fewer than `min_size` numbers are updated at once.
    """
    leaves, structure = jax.tree.flatten(state, is_leaf=is_coded)
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) if is_coded(x) else x for x in leaves]
    traced, out = jax.make_jaxpr(update, return_shape=True)(updates, structure.unflatten(shapes))
    given = [*jax.tree.leaves(updates), *leaves]
    steps = len(given) - len(leaves)
    inputs = [Op(None, (), [var]) for var in traced.jaxpr.invars]
    stored = dict(zip(inputs, given, strict=True))
    graph = Update(inputs, stored, _graph(traced, [Node(op) for op in inputs]))
    new: list[Stored | None] = [None] * len(graph.results)
    for i in range(steps):
        if (loop := _loop(graph, steps, i, min_size)) is not None:
            for at, value in zip(loop, _run(graph, loop), strict=True):
                new[at] = value
    for i, node in enumerate(graph.results):
        if new[i] is None:
            value = _computed(node, stored)
            old = given[i]
            new[i] = requantize(old, value) if i >= steps and is_coded(old) else value
    after = jax.tree.structure(out[1])
    return jax.tree.structure(out[0]).unflatten(new[:steps]), after.unflatten(new[steps:])


def _graph(jaxpr: compat.Jaxpr, args: Sequence[Value]) -> list[Value]:
    """The results of a jaxpr as nodes or constants, calls of jitted functions opened."""

    def step(eqn: jex.JaxprEqn, operands: list[Value]) -> Sequence[Value]:
        if eqn.primitive.name in ("jit", "pjit"):
            return _graph(compat.inner_jaxpr(eqn), operands)
        op = Op(eqn, operands, eqn.outvars)
        return [Node(op, k) for k in range(len(eqn.outvars))]

    return walk(jaxpr, args, step, lambda value: value)


def _computed(node: Value, stored: dict[Op, Stored]) -> Array:
    """The value of a node in its full shape, computed once."""
    if not isinstance(node, Node):
        return _value(node)
    pending = [node.op]
    while pending:  # a stack: what an operation needs goes on top of it
        op = pending[-1]
        before = [a.op for a in op.args if isinstance(a, Node) and not a.op.values]
        if op.values:
            pending.pop()
        elif before:
            pending.extend(before)
        elif op.eqn is None:
            op.values = [_decoded(stored[op])]
        else:
            op.values = _evaluate(op.eqn, [_value(a) for a in op.args])
    return _value(node)


def _value(x: Value) -> Array:
    """What was computed for a node; a constant as it is."""
    return x.op.values[x.which] if isinstance(x, Node) else x  # pyright: ignore[reportReturnType]


def _evaluate(eqn: jex.JaxprEqn, args: Sequence[Array]) -> list[Array]:
    with compat.equation_context(eqn):
        return compat.bind(eqn, *args)


def _loop(update: Update, steps: int, i: int, min_size: int) -> list[int] | None:
    """The results that are computed together with step `i` in a loop; None without a loop."""
    inputs, results = update.inputs, update.results
    shape = inputs[i].avals[0].shape
    reached = _reached(results[i], shape)
    if len(shape) < 3 or shape[0] == 1 or np.prod(shape) < min_size or reached is None:
        return None
    loop = [i, *(at for at in range(steps, len(results)) if inputs[at] in reached)]
    for at in loop:
        node = results[at]
        same = isinstance(node, Node) and node.aval == inputs[at].avals[0]
        if not same or _reached(node, shape) is None:
            return None
    return loop if any(is_coded(update.stored[inputs[at]]) for at in loop[1:]) else None


def _reached(node: Value, shape: tuple[int, ...]) -> set[Op] | None:
    """The inputs of this shape that a node follows from number by number; None if not so."""
    inputs: set[Op] = set()
    pending: list[Value] = [node]
    visited: set[Node] = set()
    while pending:
        node = pending.pop()
        if _shape(node) not in ((), shape):
            return None
        if not isinstance(node, Node) or node.shape == () or node in visited:
            continue
        visited.add(node)
        op = node.op
        if op.eqn is None:
            inputs.add(op)
        elif not (op.is_fill or op.is_elementwise):
            return None
        pending.extend(op.args)
    return inputs


def _shape(x: Value) -> tuple[int, ...]:
    return x.shape if isinstance(x, Node) else np.shape(x)


def _run(update: Update, loop: list[int]) -> list[Stored]:
    """The results `loop`: the loop over their leading axis."""
    inputs, stored = [update.inputs[at] for at in loop], update.stored
    results = [update.results[at] for at in loop]
    start = [stored[op] for op in inputs]
    for node in results:  # scalars of all kinds, computed once, before the loop
        _compute_scalars(node, stored)

    def body(k: Array, carry: list[Stored]) -> list[Stored]:
        # Everything is read before anything is written, else XLA copies the stacks.
        read = lax.optimization_barrier([_take(x, k) for x in carry])
        memo = {Node(op): _decoded(x) for op, x in zip(inputs, read, strict=True)}
        parts = [_slice(node, k, stored, memo) for node in results]
        coded = [
            requantize(old, part, part=k) if isinstance(old, Quantized) else part
            for old, part in zip(read, parts, strict=True)
        ]
        return [_put(x, part, k) for x, part in zip(carry, coded, strict=True)]

    with jax.named_scope("update_in_slices"):
        done = lax.fori_loop(0, _shape(results[0])[0], body, start)
    return [
        dataclasses.replace(x, draws=x.draws + np.uint32(1))
        if isinstance(x, Quantized) and x.draws is not None
        else x
        for x in done
    ]


def _compute_scalars(node: Value, stored: dict[Op, Stored]) -> None:
    pending, visited = [node], set()
    while pending:
        node = pending.pop()
        if not isinstance(node, Node) or node in visited:
            continue
        visited.add(node)
        if node.shape == ():
            _computed(node, stored)
        elif node.op.eqn is not None:
            pending.extend(node.op.args)


def _slice(node: Value, k: Array, stored: dict[Op, Stored], memo: dict[Node, Array]) -> Array:
    """Layer `k` of a node, with a leading axis of 1; scalars as they are."""
    if not isinstance(node, Node):
        constant = _value(node)
        return _cut(constant, k) if np.ndim(constant) else constant
    if node.shape == ():
        return _value(node)
    if node not in memo:
        op = node.op
        if op.eqn is None:
            memo[node] = _decoded(_take(stored[op], k))
        elif op.is_fill:
            scalar = jnp.asarray(_value(op.args[0]), op.avals[0].dtype)
            memo[node] = jnp.broadcast_to(scalar, (1, *node.shape[1:]))
        else:
            args = [_slice(a, k, stored, memo) for a in op.args]
            (memo[node],) = _evaluate(op.eqn, args)
    return memo[node]


def _decoded(x: Stored) -> Array:
    return dequantize(x) if isinstance(x, Quantized) else x


def _cut(x: Array, k: Array) -> Array:
    return lax.dynamic_slice_in_dim(x, k, 1)


def _take(x: Stored, k: Array) -> Stored:
    """Layer `k`, with a leading axis of 1."""
    if not isinstance(x, Quantized):
        return _cut(x, k)
    return dataclasses.replace(x, codes=_cut(x.codes, k), scales=_cut(x.scales, k))


def _put(x: Stored, part: Stored, k: Array) -> Stored:
    """`x` with `part` as its layer `k`."""
    put = lambda a, b: lax.dynamic_update_slice_in_dim(a, b, k, 0)
    if not isinstance(x, Quantized) or not isinstance(part, Quantized):
        return put(x, part)
    return dataclasses.replace(x, codes=put(x.codes, part.codes), scales=put(x.scales, part.scales))
