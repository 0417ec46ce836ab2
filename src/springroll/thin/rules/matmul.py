"""Matrix products with low-rank weights: `dot_general` and `ragged_dot_general`."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend import core as jex

from springroll import compat
from springroll.thin.axis_trace import AxisTrace, Refs, used_up
from springroll.thin.densify import is_free
from springroll.thin.factored_array import (
    Factored,
    Side,
    cast,
    common_dtype,
    other_side,
    scale_rank,
    whole_bytes,
    wide_dtype,
)
from springroll.thin.interpreter import Frame, Operand, Outputs
from springroll.thin.rules.joining import side_by_side
from springroll.thin.thin_term import (
    FEW_ROWS,
    RANK,
    Options,
    Thin,
    contract,
    stays_on_lattice,
    thin_term,
)


def dot_general(frame: Frame, eqn: jex.JaxprEqn, a: Operand, b: Operand) -> Outputs:
    """x . w = x . base + (gain * (x . right)) . left: one shared GEMM and two thin products.

    The sum is taken before rounding to a short output type.
    """
    if not isinstance(a, Factored):
        return _times_activation(frame, eqn, b, a, False) if isinstance(b, Factored) else None
    if not isinstance(b, Factored):
        return _times_activation(frame, eqn, a, b, True)
    joined = None if is_free(a) or is_free(b) else _product_of_two(eqn, a, b)
    if joined is not None:
        return joined
    if is_free(a) or (compat.size(a.base) <= compat.size(b.base) and not is_free(b)):
        return _times_activation(frame, eqn, b, frame.dense(a, eqn), False)
    return _times_activation(frame, eqn, a, frame.dense(b, eqn), True)


def _times_activation(
    frame: Frame, eqn: jex.JaxprEqn, w: Factored, x: Array, weight_first: bool
) -> Outputs:
    if weight_first:
        w_labels, x_labels, out = dot_labels(eqn, w.ndim, x.ndim)
    else:
        x_labels, w_labels, out = dot_labels(eqn, x.ndim, w.ndim)
    thin = Thin.of(w, w_labels)
    if w.lattice is not None and not stays_on_lattice(x, x_labels, thin, out):
        return None
    dtype = compat.dtype_of(eqn.outvars[0])
    wide = wide_dtype(dtype)
    precision = _precision(eqn, w)
    x = _written_once(frame, x, x_labels, w_labels, w)
    term = thin_term(x, x_labels, thin, out, dtype=wide, precision=precision, memo=frame.memo)
    # XLA multiplies no numbers of fewer than 8 bits on a CPU.
    operands = [cast(v, whole_bytes(v.dtype)) for v in (x, w.base)]
    operands = operands[::-1] if weight_first else operands
    changed = {"preferred_element_type": wide, "precision": precision}
    if isinstance(eqn.params["precision"], lax.DotAlgorithmPreset):
        changed = {}  # an algorithm fixes the types of its products
    main = cast(compat.bind(eqn, *operands, **changed)[0], wide)
    return [cast(main + term, dtype)]


def dot_flow(trace: AxisTrace, eqn: jex.JaxprEqn, refs: list[Refs]) -> list[Refs]:
    summed, batch = eqn.params["dimension_numbers"]
    for operand, c, b, other in zip(refs, summed, batch, reversed(eqn.invars), strict=True):
        trace.use(eqn, operand, summed=c, shared=b, activation=other)
    return [()]


def _written_once(
    frame: Frame, x: Array, x_labels: list[int], w_labels: list[int], w: Factored
) -> Array:
    """x, written to memory before the base and the factors meet it.

    With one row per member, as in decoding, XLA otherwise computes x (a norm, a gate) once more for
    every product: a tenth of a step on a CPU.
    """
    free = [n for c, n in zip(x_labels, x.shape, strict=True) if c not in w_labels]
    if w.lattice is not None or math.prod(free) >= FEW_ROWS:
        return x
    return frame.memo.once(lambda: lax.optimization_barrier(x), (x,), "written")


def _precision(eqn: jex.JaxprEqn, w: Factored) -> lax.PrecisionLike:
    """The equation's own precision; exact for integers that are carried in float registers."""
    if w.lattice is not None:
        return (lax.Precision.HIGHEST, lax.Precision.HIGHEST)
    own = eqn.params["precision"]
    return None if isinstance(own, lax.DotAlgorithmPreset) else own


def _product_of_two(eqn: jex.JaxprEqn, a: Factored, b: Factored) -> Outputs:
    """(a + l_a r_a.T) (b + l_b r_b.T) = a b + [a l_b, l_a] [r_b, (b + l_b r_b.T).T r_a].T.

    Stays thin, at rank r_a + r_b, when each weight sums over all axes of one factor and keeps all
    axes of the other (an evolved LoRA pair, two linear layers in a row).
    """
    (a_sum, b_sum), (a_batch, b_batch) = eqn.params["dimension_numbers"]
    a_summed = _summed_side(a, a_sum, a_batch)
    b_summed = _summed_side(b, b_sum, b_batch)
    if not (a_summed and b_summed) or a.lattice is not None or b.lattice is not None:
        return None
    a_other, b_other = other_side(a_summed), other_side(b_summed)
    a_labels, b_labels, out = dot_labels(eqn, a.ndim, b.ndim)
    a_free = [c for c in out if c in a_labels]  # both start with the batch axes
    b_free = [c for c in out if c in b_labels]
    dtype = compat.dtype_of(eqn.outvars[0])
    options: Options = {"dtype": wide_dtype(dtype), "precision": eqn.params["precision"]}

    end = [*(b_labels[i] for i in b.axes(b_summed)), RANK]
    left = contract(a.base, a_labels, b.factor(b_summed), end, [*a_free, RANK], **options)
    left = cast(scale_rank(left, b.gain), dtype)

    # The summed factor of a plays the activation, in a type that holds b too; its rank axis gets an
    # ordinary label.
    a_rank = len(a_labels) + len(b_labels)
    x = a.factor(a_summed)
    x = cast(x, common_dtype(x, b.base))
    x_labels = [*(a_labels[i] for i in a.axes(a_summed)), a_rank]
    target = [*b_free, a_rank]
    right = contract(x, x_labels, b.base, b_labels, target, **options)
    right = right + thin_term(x, x_labels, Thin.of(b, b_labels), target, **options)
    right = cast(scale_rank(right, a.gain), dtype)

    a_outer = _ordered(a.factor(a_other), [a_labels[i] for i in a.axes(a_other)], a_free)
    b_outer = _ordered(b.factor(b_other), [b_labels[i] for i in b.axes(b_other)], b_free)
    batch = len(a_batch)
    roles = "s" * batch + "m" * (len(a_free) - batch) + "n" * (len(b_free) - batch)
    return [
        Factored(
            base=compat.bind(eqn, a.base, b.base)[0],
            left=side_by_side(left, a_outer),
            right=side_by_side(b_outer, right),
            roles=roles,
            path=f"{a.path} . {b.path}",
        )
    ]


def dot_labels(
    eqn: jex.JaxprEqn, a_ndim: int, b_ndim: int
) -> tuple[list[int], list[int], list[int]]:
    """dot_general as an einsum: labels of a, of b and of the output."""
    (a_sum, b_sum), (a_batch, b_batch) = eqn.params["dimension_numbers"]
    a_labels = list(range(a_ndim))
    b_labels = list(range(a_ndim, a_ndim + b_ndim))
    for i, j in zip((*a_sum, *a_batch), (*b_sum, *b_batch), strict=True):
        b_labels[j] = a_labels[i]
    out = [
        *(a_labels[i] for i in a_batch),
        *(c for i, c in enumerate(a_labels) if i not in (*a_sum, *a_batch)),
        *(c for j, c in enumerate(b_labels) if j not in (*b_sum, *b_batch)),
    ]
    return a_labels, b_labels, out


def _summed_side(w: Factored, summed: Sequence[int], batch: Sequence[int]) -> Side | None:
    """The factor all of whose own axes, and no others, are summed over; None if there is none."""
    if any((w.roles[i] == "s") != (i in batch) for i in range(w.ndim)):
        return None
    summed_roles = {w.roles[i] for i in summed}
    free_roles = {w.roles[i] for i in range(w.ndim) if i not in (*summed, *batch)}
    if summed_roles <= {"m"} and free_roles <= {"n"}:
        return "left"
    if summed_roles <= {"n"} and free_roles <= {"m"}:
        return "right"
    return None


def _ordered(factor: Array, labels: list[int], wanted: list[int]) -> Array:
    return lax.transpose(factor, [*(labels.index(c) for c in wanted), len(labels)])


def ragged_dot_general(
    frame: Frame, eqn: jex.JaxprEqn, x: Operand, w: Factored, *sizes: Operand
) -> Outputs:
    """Rows sorted by expert: one ragged product with the base, thin products per row."""
    if isinstance(x, Factored) or len(sizes) != 1 or isinstance(sizes[0], Factored):
        return None
    term = ragged_thin(eqn, x, w, sizes[0])
    if term is None:
        return None
    main = population_ragged_dot(eqn, x, w.base, sizes[0])
    return [cast(cast(main, term.dtype) + term, compat.dtype_of(eqn.outvars[0]))]


def ragged_dot_flow(trace: AxisTrace, eqn: jex.JaxprEqn, refs: list[Refs]) -> list[Refs]:
    if refs[0] or not is_plain(eqn):
        return used_up(trace, eqn, refs)
    trace.use(eqn, refs[1], summed=(1,), shared=(0,), activation=eqn.invars[0], dealt=(0,))
    trace.names.deal(eqn)
    return [()]


def is_plain(eqn: jex.JaxprEqn) -> bool:
    """The layout of lax.ragged_dot: (rows, m) x (experts, m, n) -> (rows, n)."""
    d = eqn.params["ragged_dot_dimension_numbers"]
    return (
        tuple(map(tuple, d.dot_dimension_numbers[0])) == ((1,), (1,))
        and not any(d.dot_dimension_numbers[1])
        and list(d.lhs_ragged_dimensions) == [0]
        and list(d.rhs_group_dimensions) == [0]
    )


def ragged_thin(eqn: jex.JaxprEqn, x: Array, w: Factored, sizes: Array) -> Array | None:
    """Every row meets its own expert's factors; rows past the last group get zero."""
    if not is_plain(eqn):
        return None
    rows, m, n = 0, 1, 2
    expert = jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(x.shape[0], dtype=sizes.dtype), "right")
    beyond = (expert >= w.shape[0])[:, None]

    def own(factor: Array, axes: tuple[int, ...]) -> tuple[Array, list[int]]:
        labels = [*({1: m, 2: n}[i] for i in axes if i), RANK]
        if 0 not in axes:
            return factor, labels
        return jnp.take(factor, expert, axis=0, mode="clip"), [rows, *labels]

    left, right = own(w.left, w.axes("left")), own(w.right, w.axes("right"))
    thin = Thin(*left, *right, w.gain, w.lattice, w.dtype)
    if w.lattice is not None and not stays_on_lattice(x, [rows, m], thin, [rows, n]):
        return None
    wide = wide_dtype(compat.dtype_of(eqn.outvars[0]))
    precision = lax.Precision.HIGHEST if w.lattice is not None else eqn.params["precision"]
    term = thin_term(x, [rows, m], thin, [rows, n], dtype=wide, precision=precision)
    return jnp.where(beyond, jnp.zeros_like(term), term)


def population_ragged_dot(eqn: jex.JaxprEqn, x: Array, base: Array, sizes: Array) -> Array:
    """ragged_dot that can be vmapped over members with one shared base.

    JAX cannot batch ragged_dot over rows. The rows of all members are sorted by expert into one
    ragged product and put back, so the base is still read once for the whole population.
    """

    def plain(x: Array, base: Array, sizes: Array) -> Array:
        return compat.bind(eqn, x, base, sizes)[0]

    shared = jax.custom_batching.custom_vmap(plain)

    @shared.def_vmap
    def _(
        axis_size: int, batched: Sequence[bool], x: Array, base: Array, sizes: Array
    ) -> tuple[Array, bool]:
        if batched[1]:
            x, sizes = (
                v if is_batched else jnp.broadcast_to(v, (axis_size, *v.shape))
                for v, is_batched in ((x, batched[0]), (sizes, batched[2]))
            )
            return lax.map(lambda one: plain(*one), (x, base, sizes)), True
        if not batched[0] and not batched[2]:
            return plain(x, base, sizes), False
        x = x if batched[0] else jnp.broadcast_to(x, (axis_size, *x.shape))
        sizes = sizes if batched[2] else jnp.broadcast_to(sizes, (axis_size, *sizes.shape))
        return _merged(x, base, sizes), True

    def _merged(x: Array, base: Array, sizes: Array) -> Array:
        members, rows = x.shape[:2]
        ends = jnp.cumsum(sizes, axis=1)
        place = jnp.arange(rows, dtype=sizes.dtype)
        expert = jax.vmap(lambda e: jnp.searchsorted(e, place, "right"))(ends).reshape(-1)
        order = jnp.argsort(expert, stable=True)
        back = jnp.argsort(order)
        flat = x.reshape(members * rows, -1)
        out = population_ragged_dot(eqn, flat[order], base, sizes.sum(0, dtype=sizes.dtype))
        return out[back].reshape(members, rows, -1)

    # custom_vmap has no reverse mode of its own.
    @jax.custom_vjp
    def differentiable(x: Array, base: Array, sizes: Array) -> Array:
        return shared(x, base, sizes)

    def forward(x: Array, base: Array, sizes: Array) -> tuple[Array, tuple[Array, Array, Array]]:
        return shared(x, base, sizes), (x, base, sizes)

    def backward(saved: tuple[Array, Array, Array], cotangent: Array) -> tuple[Array, Array, None]:
        x, base, sizes = saved
        _, pull = jax.vjp(lambda x, base: plain(x, base, sizes), x, base)
        return (*pull(cotangent), None)

    differentiable.defvjp(forward, backward)
    return differentiable(x, base, sizes)
