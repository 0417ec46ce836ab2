"""Your own product, marked as one: a kernel that `factored` and `discover` then understand.

A grouped matrix product, a Pallas kernel, a custom derivative: their insides are opaque or a loop
that should not be rewritten. `product` says what they are instead:

    @product("smn")                      # y = x . w, one matrix per group, w (groups, in, out)
    def grouped_dot(x, w, block_group): ...

On a thin weight the kernel is then called three times, y = f(x, base) + f(f(x, left), right).
"""

import functools
import typing
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Concatenate, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend import core as jex

from springroll import compat
from springroll.thin.factored_array import (
    SIDES,
    Factored,
    Side,
    cast,
    common_type,
    is_tiny,
    other_side,
    scale_rank,
    wide_dtype,
)
from springroll.thin.interpreter import Frame, Operand, Outputs, is_coded

Roles: TypeAlias = str | Callable[..., str]
Kernel: TypeAlias = Callable[Concatenate[Array, Array, ...], Array]  # of (x, w, *rest)
Fn = TypeVar("Fn", bound=Callable[..., Array])


@dataclass(frozen=True)
class Product:
    """y = fn(x, w, *rest), linear in x and in w. `roles` has a letter per axis of w."""

    fn: Kernel
    roles: str

    def axes(self, role: str) -> tuple[int, ...]:
        return tuple(i for i, r in enumerate(self.roles) if r == role)


MARKED: dict[str, Product] = {}  # by the name of the jit that the mark puts around the function


def product(roles: Roles) -> Callable[[Fn], Fn]:
    """Decorator: fn(x, w, *rest, **static) is a product of x and w.

    fn must take any size of m and n, be linear in x and in w, and be differentiable. Keyword
    arguments are static.

    Args:
        roles: one letter per axis of w: one m, the axis that is summed with the last axis of x;
            one n, which becomes the last axis of the result; s for any other, along which each row
            of x meets a slice of its own (groups, experts). If the layout depends on the keyword
            arguments, a function of them: `product(lambda transposed=False: "snm" if transposed
            else "smn")`.

    Returns:
        A decorator for a kernel of (x (..., m), w, *rest) -> (..., n).

    Raises:
        ValueError: when the kernel is called, if `roles` has not one m and one n besides s.

    >>> import jax.numpy as jnp
    >>> from springroll.thin import discover
    >>> kernel = product("nm")(lambda x, w: x @ w.T)
    >>> discover(lambda p, x: kernel(x, p), jnp.ones((3, 4)), jnp.ones((2, 4))).leaves[0].roles
    'nm'
    """

    def mark(fn: Fn) -> Fn:
        @functools.cache
        def marked(**static: Hashable) -> Kernel:
            letters = roles if isinstance(roles, str) else roles(**static)
            if sorted(letters.replace("s", "")) != ["m", "n"]:
                raise ValueError(f"product roles {letters!r}: expected one m, one n and s.")
            run = functools.partial(fn, **static)
            name = f"{getattr(fn, '__name__', 'product')}[{letters}] product {len(MARKED)}"
            call = lambda *args: run(*args)
            call.__name__ = call.__qualname__ = name
            jitted = jax.jit(call)
            MARKED[name] = Product(jitted, letters)
            return jitted

        @functools.wraps(fn)
        def with_static(*args: Array, **static: Hashable) -> Array:
            return marked(**static)(*args)

        return typing.cast("Fn", with_static)

    return mark


def marked_product(eqn: jex.JaxprEqn) -> Product | None:
    """What a call-like equation was marked as, if it was."""
    return MARKED.get(eqn.params.get("name", ""))


def thin_product(
    frame: Frame, spec: Product, eqn: jex.JaxprEqn, x: Operand, w: Operand, *rest: Operand
) -> Outputs:
    """fn(x, base) + fn(fn(x, left), right), or None if the weight's roles do not fit the mark.

    The factor that carries the summed axis comes first, be it left or right. A stacked axis that
    only one factor carries makes a plain product of the other: with roles "nmn" on an "smn" product
    all groups share `left`, and x . left is one product for all.
    """
    others = [v for v in rest if not isinstance(v, Factored)]
    if not isinstance(w, Factored) or isinstance(x, Factored) or len(others) < len(rest):
        return None
    first = _summed_side(spec, w)
    stacked = [{i for i in spec.axes("s") if i in w.axes(side)} for side in SIDES]
    if (
        w.lattice is not None
        or is_tiny(w.dtype)
        or (is_coded(w) and not jnp.issubdtype(x.dtype, jnp.inexact))
        or first is None
        or not all(s in (set(), {*spec.axes("s")}) for s in stacked)
    ):
        return None
    t = frame.memo.once(
        lambda: _times_factor(spec, x, w, first, others),
        (x, w.factor(first), spec, *others),
        "product",
    )
    t = scale_rank(t, w.gain)
    dtype = compat.dtype_of(eqn.outvars[0])
    main, term = spec.fn(x, w.base, *others), _times_factor(spec, t, w, other_side(first), others)
    return [cast(cast(main, wide_dtype(dtype)) + cast(term, wide_dtype(dtype)), dtype)]


def _summed_side(spec: Product, w: Factored) -> Side | None:
    """The factor that carries the summed axis, if the other carries the one that it becomes."""
    (m,), (n,) = spec.axes("m"), spec.axes("n")
    sides: dict[tuple[str, str], Side] = {("m", "n"): "left", ("n", "m"): "right"}
    return sides.get((w.roles[m], w.roles[n]))


def _times_factor(spec: Product, x: Array, w: Factored, side: Side, rest: Sequence[Array]) -> Array:
    """x times one factor, whose rank stands in for the axis of w that it lacks."""
    carried = w.axes(side)
    common = x.dtype if is_coded(w) else common_type(x.dtype, w.dtype)
    x, factor = cast(x, common), cast(w.factor(side), common)
    rank = len(carried)
    if spec.axes("s") and not set(spec.axes("s")) <= set(carried):  # one for all groups
        summed = 0 if carried == spec.axes("m") else rank
        return lax.dot_general(x, factor, (((x.ndim - 1,), (summed,)), ((), ())))
    order = [carried.index(i) if i in carried else rank for i in range(w.ndim)]
    return spec.fn(x, lax.transpose(factor, order), *rest)
