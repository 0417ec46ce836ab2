"""How the steps of an optimizer follow from weights that are coordinates in a basis.

Any other basis of a subspace would do as well, so weights can be used there in three ways: as they
are, times what is the same for all coordinates (decay); by their norms, which a turn of the basis
leaves alone; and as a part of the gradients that they were added to (an L2 penalty), whatever then
becomes of these. The program of the optimizer is read equation by equation; nothing is run, so
neither the number of steps nor the size of a weight matters.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
from jax.extend import core as jex

from springroll import compat

PLAIN, LINEAR, SQUARE = range(3)  # of coordinates: any function, a sum, a sum of products of two
# Along an axis: one number, several, a matrix each of which has its own basis, coordinates in one.
SAME, VARIES, BASES, TURNS = range(4)
Tag: TypeAlias = tuple  # ("weight", leaf), ("gradient", leaf), ("sum", leaf, where), ("constant",)
Atom: TypeAlias = "jex.Var | jex.Literal"

MOVES = {"broadcast_in_dim", "reshape", "transpose", "squeeze"}
KEEPS = {
    *("neg", "convert_element_type", "reduce_precision", "copy", "copy_p", "conj", "pvary"),
    *("optimization_barrier", "sharding_constraint", "device_put", *MOVES),
}
ADDS = {"add", "sub", "add_any"}
REDUCES = {"reduce_max", "reduce_min", "reduce_and", "reduce_or", "reduce_prod", "reduce_sum"}


class Value(NamedTuple):
    """What is known of a value: its kind, what it is made of, and each of its axes."""

    kind: int = PLAIN
    tags: frozenset[Tag] = frozenset()
    axes: tuple[int, ...] = ()

    @property
    def turning(self) -> set[int]:
        return {i for i, axis in enumerate(self.axes) if axis == TURNS}

    @property
    def frame(self) -> dict[int, int]:
        """The axes that tell in which basis a number is a coordinate, and which one."""
        return {i: axis for i, axis in enumerate(self.axes) if axis >= BASES}

    @property
    def leaves(self) -> set[int]:
        return {tag[1] for tag in self.tags if len(tag) > 1}

    def same_along(self, axes: set[int]) -> bool:
        return all(i >= len(self.axes) or self.axes[i] == SAME for i in axes)


class ReadsCoordinates(Exception):
    """An equation that makes something of single coordinates.

    eqn: that one, or the outermost call that holds it (what is inside of a call may have been
    written for another); None for a result of the program.
    again: it adds weights to what was made of them already.
    """

    def __init__(self, eqn: jex.JaxprEqn | None = None, again: bool = False):
        super().__init__(str(eqn))
        self.eqn, self.again = eqn, again


def coordinates(what: str, leaf: int, shape: Sequence[int], turning: Sequence[int]) -> Value:
    """An input: the "weight" or the "gradient" number `leaf`, with these axes in a basis."""
    turning = [axis % len(shape) for axis in turning]
    if not turning:
        return constant(shape)
    stacked = [BASES] * (len(shape) - 2)
    axes = [*stacked, VARIES, VARIES][-len(shape) :]
    axes = tuple(TURNS if i in turning else axis for i, axis in enumerate(axes))
    return Value(LINEAR, frozenset([(what, leaf)]), axes)


def constant(shape: Sequence[int]) -> Value:
    """An array that is no function of weights or gradients in a subspace."""
    return Value(axes=tuple(VARIES if n > 1 else SAME for n in shape))


def follow(closed: jex.ClosedJaxpr, inputs: Sequence[Value], steps: int) -> list[Value]:
    """What is known of each result.

    steps: of the first so many results each is the step of the input of that number.

    Raises:
        ReadsCoordinates: something is made of weights that a turn of their basis would change, or a
            step of what is a coordinate in another basis.
    """
    found = _program(compat.prune(closed).jaxpr, inputs, ())
    for number, value in enumerate(found):
        weights = {tag[1] for tag in value.tags if tag[0] == "weight"}
        step = number < steps and value.kind == LINEAR and weights
        if step and (weights != {number} or value.frame != inputs[number].frame):
            raise ReadsCoordinates
        if value.kind == SQUARE and not _may(value.tags):
            raise ReadsCoordinates
    return found


def _program(jaxpr: jex.Jaxpr, inputs: Sequence[Value], where: tuple[int, ...]) -> list[Value]:
    known = {x: constant(compat.shape_of(x)) for x in jaxpr.constvars}
    known |= dict(zip(jaxpr.invars, inputs, strict=True))
    look = lambda x: Value() if isinstance(x, compat.Literal) else known[x]
    for number, eqn in enumerate(jaxpr.eqns):
        try:
            found = _equation(eqn, [look(x) for x in eqn.invars], (*where, number))
        except ReadsCoordinates as found:
            name = eqn.primitive.name
            at = found.eqn if name in CONTROL and found.eqn else eqn
            raise ReadsCoordinates(at, found.again or name in ADDS) from None
        known |= dict(zip(eqn.outvars, found, strict=True))
    return [look(x) for x in jaxpr.outvars]


def _equation(eqn: jex.JaxprEqn, given: list[Value], where: tuple[int, ...]) -> list[Value]:
    name = eqn.primitive.name
    if name in CONTROL:
        return CONTROL[name](eqn, given, where)
    inner = compat.inner_jaxpr(eqn)
    if inner is not None and len(compat.open_jaxpr(inner)[0].invars) == len(given):
        return _program(compat.open_jaxpr(inner)[0], given, where)
    if name == "optimization_barrier":
        return given
    axes = [_axes(eqn, given, out) for out in eqn.outvars]
    if name == "is_finite" or (name == "ne" and eqn.invars[0] is eqn.invars[1]):
        return [Value(axes=(SAME,) * len(axes[0]))]  # a turn of what is finite is finite
    if all(value.kind == PLAIN for value in given):
        return [_any(given, one) for one in axes]
    found = None if len(axes) != 1 else _kept(eqn, given, axes[0], where)
    return [_any(given, one) for one in axes] if found is None else [found]


def _kept(
    eqn: jex.JaxprEqn, given: list[Value], axes: tuple[int, ...], where: tuple[int, ...]
) -> Value | None:
    """The result, where it is one that a turn leaves alone or turns; else None."""
    name, first = eqn.primitive.name, given[0]
    if name in KEEPS:
        number = jnp.issubdtype(compat.dtype_of(eqn.outvars[0]), jnp.inexact)
        return Value(first.kind, first.tags, axes) if number else None
    if name == "real":
        return Value(SQUARE, first.tags, axes) if first.kind == SQUARE else None
    if name == "square" or (name == "integer_pow" and eqn.params["y"] == 2):
        return _product(first, first, axes)
    if name == "mul" or (name == "div" and given[1].kind == PLAIN):
        return _product(first, given[1], axes)
    if name == "reduce_sum":
        return _reduced(first, set(eqn.params["axes"]), axes)
    if name in ADDS:
        return _sum(eqn, given, axes, where)
    if name == "select_n":
        return _joined(given[1:], axes) if given[0].same_along(_turning(given)) else None
    if name == "dot_general":
        return _dot(eqn, given, axes)
    return None


def _product(a: Value, b: Value, axes: tuple[int, ...]) -> Value | None:
    if a.kind == PLAIN:
        a, b = b, a
    if b.kind == PLAIN:
        return Value(a.kind, a.tags, axes) if b.same_along(a.turning) else None
    if a.kind == b.kind == LINEAR and a.frame == b.frame and len(a.leaves | b.leaves) < 2:
        return Value(SQUARE, a.tags | b.tags, axes)
    return None


def _reduced(value: Value, over: set[int], axes: tuple[int, ...]) -> Value | None:
    if value.kind == LINEAR:
        return None if over & value.frame.keys() else Value(LINEAR, value.tags, axes)
    if value.turning - over:
        return Value(SQUARE, value.tags, axes)
    return None if ("constant",) in value.tags else Value(PLAIN, frozenset(), axes)


def _sum(
    eqn: jex.JaxprEqn, given: list[Value], axes: tuple[int, ...], where: tuple[int, ...]
) -> Value | None:
    joined = _joined(given, axes)
    if joined is None:
        return None
    tags = set(joined.tags)
    for atom, value, other in zip(eqn.invars, given, reversed(given), strict=True):
        for tag in value.tags if joined.kind == LINEAR else ():
            leaf = tag[1] if tag[0] == "weight" else None
            apart = not _made_of_gradient(value.tags, leaf)
            if leaf is not None and apart and _made_of_gradient(other.tags, leaf):
                tags -= {tag, ("gradient", leaf)}
                tags.add(("sum", leaf, where))
        zero = isinstance(atom, compat.Literal) and not atom.val
        vector = all(value.axes[i : i + 1] > (SAME,) for i in other.turning)
        if value.kind == PLAIN and joined.kind == LINEAR and not zero and not vector:
            tags.add(("constant",))
    return Value(joined.kind, frozenset(tags), axes)


def _made_of_gradient(tags: frozenset[Tag], leaf: int | None) -> bool:
    """And of nothing else of that leaf: no weight, no sum of both."""
    return {tag[0] for tag in tags if tag[1:2] == (leaf,)} == {"gradient"}


def _dot(eqn: jex.JaxprEqn, given: list[Value], axes: tuple[int, ...]) -> Value | None:
    (left, right), (batch, others) = eqn.params["dimension_numbers"]
    a, b = given
    if a.kind == b.kind == LINEAR:
        whole = a.turning <= set(left) and b.turning <= set(right)
        paired = {(i, j) for i, j in zip((*left, *batch), (*right, *others), strict=True)}
        whole &= a.frame.keys() <= {i for i, _ in paired} and b.frame.keys() <= {
            j for _, j in paired
        }
        same = all(a.frame.get(i) == b.frame.get(j) for i, j in paired)
        single = len(a.leaves | b.leaves) < 2 and ("constant",) not in a.tags | b.tags
        return Value(PLAIN, frozenset(), axes) if whole and same and single else None
    one, other, over = (a, b, left) if b.kind == PLAIN else (b, a, right)
    kept = one.kind == LINEAR and not one.frame.keys() & set(over) and TURNS not in other.axes
    return Value(LINEAR, one.tags, axes) if kept else None


def _joined(given: Sequence[Value], axes: tuple[int, ...]) -> Value | None:
    """One or the other of several values, or their sum.

    What became of a sum of gradients and weights is no sum of them any more: beside weights it
    would be a bound on these, as in clip(w + step) - w.
    """
    tags = frozenset[Tag]().union(*(value.tags for value in given))
    exact = [value for value in given if value.kind != PLAIN]
    reads = [value for value in exact if any(tag[0] != "gradient" for tag in value.tags)]
    kinds = {(value.kind, *value.frame.items()) for value in reads or exact}
    apart = {leaf for value in reads for leaf in value.leaves if value.kind == LINEAR}
    made = any(tag[0] == "sum" for v in given if v.kind == PLAIN for tag in v.tags)
    if len(kinds) > 1 or len(apart) > 1 or (kinds and made):
        return None
    return Value(max((kind for kind, *_ in kinds), default=PLAIN), tags, axes)


def _turning(given: Sequence[Value]) -> set[int]:
    return set[int]().union(*(value.turning for value in given))


def _any(given: Sequence[Value], axes: tuple[int, ...]) -> Value:
    """Any function of these values.

    Raises:
        ReadsCoordinates: of coordinates of weights, or of weights and gradients by themselves.
    """
    tags = frozenset[Tag]().union(*(value.tags for value in given)) - {("constant",)}
    if not _may(tags):
        raise ReadsCoordinates
    if TURNS not in axes:
        tags = frozenset(tag for tag in tags if tag[0] != "gradient")
    return Value(PLAIN, tags, axes)


def _may(tags: frozenset[Tag]) -> bool:
    """Whether weights come in as a part of the gradients only, which come in with it only."""
    for leaf in {tag[1] for tag in tags if tag[0] in ("weight", "sum")}:
        of = {tag for tag in tags if tag[1:2] == (leaf,)}
        if len(of) > 1 or ("weight", leaf) in of:
            return False
    return True


def _axes(eqn: jex.JaxprEqn, given: Sequence[Value], out: Atom) -> tuple[int, ...]:
    """How a result varies along its axes."""
    name, shape = eqn.primitive.name, compat.shape_of(out)
    first: tuple[int, ...] = given[0].axes if given else ()
    if name == "broadcast_in_dim":
        axes = [SAME] * len(shape)
        for axis, to in zip(first, eqn.params["broadcast_dimensions"], strict=False):
            axes[to] = axis
        return tuple(axes)
    if name == "transpose":
        return tuple(first[int(i)] for i in eqn.params["permutation"])
    if name == "squeeze":
        gone = eqn.params["dimensions"]
        return tuple(axis for i, axis in enumerate(first) if i not in gone)
    if name in REDUCES:
        return tuple(axis for i, axis in enumerate(first) if i not in eqn.params["axes"])
    if name == "reshape":
        return _reshaped(compat.shape_of(eqn.invars[0]), first, shape)
    shapes = [compat.shape_of(x) for x in eqn.invars]
    if given and all(one in ((), shape) for one in shapes) and name not in ("cumsum", "sort"):
        lists = [v.axes for v, one in zip(given, shapes, strict=True) if one == shape]
        return tuple(max(axis) for axis in zip(*lists, strict=True))
    if name == "dot_general":
        (left, right), (batch, others) = eqn.params["dimension_numbers"]
        a, b = given[0].axes, given[1].axes
        paired = [max(a[i], b[j]) for i, j in zip(batch, others, strict=True)]
        rest = [x for i, x in enumerate(a) if i not in (*left, *batch)]
        return (*paired, *rest, *(x for i, x in enumerate(b) if i not in (*right, *others)))
    turns = any(TURNS in value.axes for value in given)
    return tuple((TURNS if turns else VARIES) if n > 1 or turns else SAME for n in shape)


def _reshaped(old: Sequence[int], axes: Sequence[int], new: Sequence[int]) -> tuple[int, ...]:
    """Axes that are merged or split vary as any of those that they come from."""
    spans = lambda shape: [
        (math.prod(shape[i + 1 :]), math.prod(shape[i:])) for i in range(len(shape))
    ]
    found = []
    for low, high in spans(new):
        met = [x for x, (a, b) in zip(axes, spans(old), strict=True) if a < high and low < b]
        single = low == high  # an axis of one number
        found.append(max(met, default=SAME) if not single else SAME)
    for at, axis in enumerate(axes):  # coordinates in a basis of one stay known
        if axis == TURNS and old[at] == 1 and TURNS not in found:
            same = [i for i, n in enumerate(new) if n == 1]
            found = [TURNS if i in same or not same else x for i, x in enumerate(found)]
    return tuple(found)


Body: TypeAlias = "Callable[[list[Value]], list[Value]]"


def _cond(eqn: jex.JaxprEqn, given: list[Value], where: tuple[int, ...]) -> list[Value]:
    which, rest = given[0], given[1:]
    branches = [compat.open_jaxpr(branch)[0] for branch in eqn.params["branches"]]
    found = [_program(b, rest, (*where, i)) for i, b in enumerate(branches)]
    return [_either([which, *each]) for each in zip(*found, strict=True)]


def _either(given: Sequence[Value]) -> Value:
    """One of the later values, as the first says."""
    axes = tuple(max(axis) for axis in zip(*(v.axes for v in given[1:]), strict=True))
    return _joined(given[1:], axes) or _any(given, axes)


def _while(eqn: jex.JaxprEqn, given: list[Value], where: tuple[int, ...]) -> list[Value]:
    first, second = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    tests, consts = given[:first], given[first : first + second]
    body = compat.open_jaxpr(eqn.params["body_jaxpr"])[0]
    test = compat.open_jaxpr(eqn.params["cond_jaxpr"])[0]
    run = lambda carry: _program(body, [*consts, *carry], where)
    carry = settled(run, given[first + second :])
    _program(test, [*tests, *carry], where)
    return carry


def _scan(eqn: jex.JaxprEqn, given: list[Value], where: tuple[int, ...]) -> list[Value]:
    count, carried = compat.scan_groups(eqn)
    consts, start, rows = given[:count], given[count : count + carried], given[count + carried :]
    body = compat.open_jaxpr(eqn.params["jaxpr"])[0]
    if any(row.axes[0] == TURNS for row in rows):
        return [_any(given, _axes(eqn, given, out)) for out in eqn.outvars]
    each = [Value(row.kind, row.tags, row.axes[1:]) for row in rows]
    run = lambda carry: _program(body, [*consts, *carry, *each], where)
    carry = settled(lambda carry: run(carry)[:carried], start)
    made = run(carry)[carried:]
    stacked = max([VARIES, *(row.axes[0] for row in rows)])
    mixed = stacked == BASES and any(value.kind != PLAIN for value in carry)
    if mixed:  # what is summed over matrices has no basis
        carry = [_any(given, value.axes) for value in carry]
    return [*carry, *(Value(one.kind, one.tags, (stacked, *one.axes)) for one in made)]


def settled(run: Body, carry: list[Value]) -> list[Value]:
    """What is known of a loop's values after any number of rounds."""
    while True:
        after = [_either([Value(), *pair]) for pair in zip(carry, run(carry), strict=True)]
        if after == carry:
            return carry
        carry = after


CONTROL = {"cond": _cond, "while": _while, "scan": _scan}
