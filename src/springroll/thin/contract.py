"""Rules that use a weight up: Factored in, activation out."""

from __future__ import annotations

import math
from typing import Any

from jax import Array, lax

from springroll import compat
from springroll.thin.densify import is_free
from springroll.thin.factored_array import Factored, cast, wide_dtype
from springroll.thin.interpreter import Frame
from springroll.thin.join import dot_labels, product
from springroll.thin.ragged import population_ragged_dot, ragged_thin
from springroll.thin.terms import FEW_ROWS, Thin, stays_on_lattice, thin_term


def dot_general(frame: Frame, eqn: Any, a: Any, b: Any) -> list[Any] | None:
    """x . w = x . base + (gain * (x . right)) . left: one shared GEMM and two thin products.

    The sum is taken before rounding to a short output type.
    """
    if isinstance(a, Factored) and isinstance(b, Factored):
        joined = None if is_free(a) or is_free(b) else product(frame, eqn, a, b)
        if joined is not None:
            return joined
        if is_free(a) or (compat.size(a.base) <= compat.size(b.base) and not is_free(b)):
            a = frame.dense(a, eqn)
        else:
            b = frame.dense(b, eqn)
    a_labels, b_labels, out = dot_labels(eqn, a.ndim, b.ndim)
    w: Factored = a if isinstance(a, Factored) else b
    x: Any = b if isinstance(a, Factored) else a
    w_labels, x_labels = (a_labels, b_labels) if w is a else (b_labels, a_labels)
    thin = Thin.of(w, w_labels)
    if w.lattice is not None and not stays_on_lattice(x_labels, thin, out):
        return None
    dtype = eqn.outvars[0].aval.dtype
    wide = wide_dtype(dtype)
    precision = _precision(eqn, w)
    x = _made_once(frame, x, x_labels, w_labels, w)
    term = thin_term(x, x_labels, thin, out, dtype=wide, precision=precision, seen=frame.seen)
    operands = [w.base if v is w else x for v in (a, b)]
    changed = {"preferred_element_type": wide, "precision": precision}
    if isinstance(eqn.params["precision"], lax.DotAlgorithmPreset):
        changed = {}  # an algorithm fixes the types of its products
    main = cast(compat.bind(eqn, *operands, **changed)[0], wide)
    return [cast(main + term, dtype)]


def _made_once(
    frame: Frame, x: Array, x_labels: list[int], w_labels: list[int], w: Factored
) -> Array:
    """x, written to memory before the base and the factors meet it.

    With one row per member, as in decoding, XLA otherwise computes what made x (a norm, a gate)
    once more for every product: a tenth of a step on a CPU.
    """
    free = [n for c, n in zip(x_labels, x.shape, strict=True) if c not in w_labels]
    if w.lattice is not None or math.prod(free) >= FEW_ROWS:
        return x
    key = ("made", id(x))
    if key not in frame.seen:  # with x, whose id it is
        frame.seen[key] = (lax.optimization_barrier(x), x)
    return frame.seen[key][0]


def _precision(eqn: Any, w: Factored) -> Any:
    """The equation's own precision; exact for integers that are carried in float registers."""
    if w.lattice is not None:
        return (lax.Precision.HIGHEST, lax.Precision.HIGHEST)
    given = eqn.params["precision"]
    return None if isinstance(given, lax.DotAlgorithmPreset) else given


def ragged_dot_general(frame: Frame, eqn: Any, x: Any, w: Any, *sizes: Any) -> list[Any] | None:
    """Rows sorted by expert: one ragged product with the base, thin products per row."""
    if isinstance(x, Factored) or len(sizes) != 1 or isinstance(sizes[0], Factored):
        return None
    term = ragged_thin(eqn, x, w, sizes[0])
    if term is None:
        return None
    main = population_ragged_dot(eqn, x, w.base, sizes[0])
    return [cast(cast(main, term.dtype) + term, eqn.outvars[0].aval.dtype)]
