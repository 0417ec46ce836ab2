"""The value at the heart of springroll: a weight plus a thin term that is never formed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from springroll.errors import InputError
from springroll.trees import PyTree

Side: TypeAlias = Literal["left", "right"]
Gain: TypeAlias = Array | None
SIDES: tuple[Side, Side] = ("left", "right")


def other_side(side: Side) -> Side:
    """The factor that is not this one."""
    return "right" if side == "left" else "left"


STATIC = {"static": True}
MANY = 8  # above this rank `dense` is a matrix product


@dataclass(frozen=True)
class Lattice:
    """How a thin term lives on the integers: scaled by gain * scale, then rounded.

    The values are integers, in int8, int32 or float32 registers; all give equal bits. `rounding`:

    - "nearest" (half to even, so that a pair stays antithetic): where x meets the weight, the
      number t = x . factor is rounded, round(gain * scale * t), and multiplies the other factor
      exactly: one rounding per rank component and row instead of one per output. A lookup rounds
      gain * scale * left * right. The products with gain and scale are float32, and exact in t
      below 2^24;
    - "floor" (arXiv 2511.16652, App. G): the exact int32 product gain * t * factor is shifted right
      by -log2(scale), a power of two of at most 1; the gain is an integer sign.

    The rounded rank components are then added.

    Args:
        scale: units of the integers per unit of gain * left * right; above 0.
        rounding: "nearest" or "floor".

    Raises:
        InputError: the scale is not positive, or no power of two of at most 1 for "floor".
    """

    scale: float
    rounding: Literal["nearest", "floor"] = "nearest"

    def __post_init__(self) -> None:
        if self.rounding not in ("nearest", "floor"):
            raise InputError(
                f"Lattice rounding {self.rounding!r} is unknown; use 'nearest' or 'floor'."
            )
        if not self.scale > 0:
            raise InputError(f"Lattice scale is {self.scale}; it must be positive.")
        if self.rounding == "floor" and (self.scale > 1 or math.frexp(self.scale)[0] != 0.5):
            raise InputError(
                f"Lattice scale is {self.scale}; rounding 'floor' shifts bits and needs a power of"
                " two of at most 1, such as 2**-8."
            )

    def met(self, t: Array, gain: Gain) -> Array:
        """t (..., r), the input summed with one factor: int32, ready to meet the other one."""
        if self.rounding == "floor":
            return scale_rank(cast(t, jnp.int32), gain)
        return cast(self._rounded(cast(t, jnp.float32), gain), jnp.int32)

    def product(self, t: Array, factor: Array, dtype: DTypeLike) -> Array:
        """One component of the thin term from `met` and the other factor, in `dtype`."""
        if self.rounding == "floor":
            return cast(self._shifted(t, factor), dtype)
        return lax.mul(*_same_shape(cast(t, dtype), cast(factor, dtype)))

    def entry(self, left: Array, right: Array, gain: Gain, dtype: DTypeLike) -> Array:
        """One component of the thin weight itself, entry by entry; `gain` is that component's."""
        if self.rounding == "floor":
            sign = 1 if gain is None else cast(jnp.asarray(gain), jnp.int32)
            return cast(self._shifted(cast(left, jnp.int32) * sign, right), dtype)
        p = lax.mul(*_same_shape(cast(left, jnp.float32), cast(right, jnp.float32)))
        return cast(self._rounded(p, gain), dtype)

    def _rounded(self, p: Array, gain: Gain) -> Array:
        scaled = scale_rank(p, gain) * np.float32(self.scale)
        return lax.round(scaled, lax.RoundingMethod.TO_NEAREST_EVEN)

    def _shifted(self, t: Array, factor: Array) -> Array:
        p = lax.mul(*_same_shape(cast(t, jnp.int32), cast(factor, jnp.int32)))
        shift = -round(math.log2(self.scale))
        return lax.shift_right_arithmetic(p, jnp.full_like(p, shift))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Blocks:
    """Factors side by side along the rank, joined only where they meet an activation.

    May stand in the place of `left` or `right` of a `Factored`: layers of a scan are then joined
    one by one, and no joined copy of a whole stack exists.

    Args:
        parts: arrays (..., r_i) that are equal in all axes but the last; together they are one
            factor (..., sum of r_i) in their common dtype. Pytrees with a shape and a dtype, of
            which the leading axes of all arrays are those of the factor, may stand in their place.
        read: makes an array of a part.
    """

    parts: tuple[PyTree, ...]
    read: Callable[[PyTree], Array] = dataclasses.field(default=lambda part: part, metadata=STATIC)

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.parts[0].shape[:-1], sum(part.shape[-1] for part in self.parts))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype:
        return common_dtype(*self.parts)

    def joined(self) -> Array:
        parts = [cast(self.read(part), self.dtype) for part in self.parts]
        return lax.concatenate(parts, self.ndim - 1) if len(parts) > 1 else parts[0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Factored:
    """base + gain * left @ right.T, never formed.

    `base` has any shape; `roles` has one letter per axis of `base`:

    - "m": carried by `left` only;
    - "n": carried by `right` only;
    - "s": stacked or shared (layers, experts, heads): both carry it, so every slice has its own
      rank-r term.

    `left` has the s and m axes of `base` in order and then the rank axis r; `right` the s and n
    axes and then r. `gain` multiplies the thin term: None (1), a scalar, or one number per rank
    component (r,). It is applied to the small (..., r) intermediate, so an antithetic pair shares
    `left` and `right` and is a vmap over `gain` alone. With a `lattice` the values are integers
    (in int8, int32 or float32 registers) and each rank-one product is rounded.

    Args:
        base: the weight (...), any floating or complex dtype, or signed integers.
        left: (s and m axes of base, r); `Blocks` may stand in its place. It may have another type
            than base; complex factors need a complex base. Integers without a lattice are exact as
            long as the formed weight fits its type.
        right: (s and n axes of base, r); `Blocks` may stand in its place.
        gain: None, () or (r,).
        roles: one of s, m, n per axis of base.
        lattice: how the thin term is rounded; None for real numbers.
        path: the parameter's path, for reports; `factored` sets it.

    Source: EGGROLL, arXiv 2511.16652, section 4; LoRA, arXiv 2106.09685.

    >>> import jax.numpy as jnp
    >>> w = Factored(jnp.zeros((2, 3)), jnp.ones((2, 1)), jnp.ones((3, 1)), jnp.float32(0.5))
    >>> w.dense()
    Array([[0.5, 0.5, 0.5],
           [0.5, 0.5, 0.5]], dtype=float32)
    """

    base: Array
    left: Array
    right: Array
    gain: Gain = None
    roles: str = dataclasses.field(default="mn", metadata=STATIC)
    lattice: Lattice | None = dataclasses.field(default=None, metadata=STATIC)
    path: str = dataclasses.field(default="", metadata=STATIC)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def dtype(self) -> np.dtype:
        return self.base.dtype

    @property
    def ndim(self) -> int:
        return len(self.base.shape)

    @property
    def rank(self) -> int:
        return self.left.shape[-1]

    def axes(self, side: Side) -> tuple[int, ...]:
        """The axes of `base` that "left" or "right" carries, in order (the rank comes after)."""
        carried = "sm" if side == "left" else "sn"
        return tuple(i for i, role in enumerate(self.roles) if role in carried)

    def factor(self, side: Side) -> Array:
        """`left` or `right`."""
        return self.left if side == "left" else self.right

    def map(
        self, fn: Callable[[Array, tuple[int, ...]], Array], roles: str | None = None
    ) -> Factored:
        """Apply fn(array, axes) to base, left and right; `axes` are the base axes it carries.

        The factors have one more axis than `axes` names: the rank, last.
        """
        return dataclasses.replace(
            self,
            base=fn(self.base, tuple(range(self.ndim))),
            left=fn(self.left, self.axes("left")),
            right=fn(self.right, self.axes("right")),
            roles=self.roles if roles is None else roles,
        )

    def joined(self, join: Callable[[Blocks], Array] = Blocks.joined) -> Factored:
        """The same without `Blocks`: `join` makes an array of each."""
        one = lambda factor: join(factor) if isinstance(factor, Blocks) else factor
        return dataclasses.replace(self, left=one(self.left), right=one(self.right))

    def dense(self, dtype: DTypeLike | None = None) -> Array:
        """The full weight, in the dtype of `base` or in `dtype`. Costs an array of base's shape.

        A base of at most 8 bits is clipped after the thin term is added, int8 to +-127 and int4 to
        +-7; real factors, in units of its codes, are first rounded to nearest.
        """
        if isinstance(self.left, Blocks) or isinstance(self.right, Blocks):
            return self.joined().dense(dtype)
        wide = wide_dtype(common_dtype(self.base, self.left, self.right))
        if self.lattice is None and self.rank > MANY:
            return settled(cast(self.base, wide) + self._product(wide), dtype or self.dtype)
        left = self._spread("left")
        right = self._spread("right")
        if self.lattice is not None:
            register = jnp.int32 if jnp.issubdtype(self.dtype, jnp.integer) else self.dtype
            total = cast(self.base, register)
            for j in range(self.rank):
                gain = gain_of(self.gain, j)
                total = total + self.lattice.entry(left[..., j], right[..., j], gain, register)
            return saturate(total, dtype or self.dtype)
        thin = jnp.sum(
            lax.mul(*_same_shape(scale_rank(cast(left, wide), self.gain), cast(right, wide))),
            axis=-1,
            dtype=wide,
        )
        return settled(cast(self.base, wide) + thin, dtype or self.dtype)

    def _product(self, wide: np.dtype) -> Array:
        """The thin term in `wide`, as one matrix product: a sum of many outer ones is slow."""
        left, right = (list(self.axes(side)) for side in ("left", "right"))
        shared = [i for i in left if i in right]
        short = common_dtype(self.left, self.right) if self.gain is None else wide
        short = whole_bytes(short)
        summed = wide_dtype(short)
        if jnp.issubdtype(short, jnp.inexact):  # as exactly as the base is
            summed = common_type(summed, jnp.finfo(wide).dtype)
        thin = lax.dot_general(
            scale_rank(cast(self.left, short), self.gain),
            cast(self.right, short),
            (
                ((len(left),), (len(right),)),
                ([left.index(i) for i in shared], [right.index(i) for i in shared]),
            ),
            precision=lax.Precision.HIGHEST,
            preferred_element_type=summed,
        )
        order = [*shared, *(i for i in (*left, *right) if i not in shared)]
        return cast(lax.transpose(thin, [order.index(i) for i in range(self.ndim)]), wide)

    def _spread(self, side: Side) -> Array:
        """A factor with a size-1 axis for every axis of base that it does not carry."""
        own = self.axes(side)
        return lax.expand_dims(self.factor(side), [i for i in range(self.ndim) if i not in own])


def wide_dtype(dtype: DTypeLike) -> np.dtype:
    """The type a thin term is accumulated in: float32 for short floats, int32 for integers."""
    if jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize < 4:
        return jnp.dtype(jnp.float32)
    if jnp.issubdtype(dtype, jnp.integer) and jnp.dtype(dtype).itemsize < 4:
        return jnp.dtype(jnp.int32)
    return jnp.dtype(dtype)


def common_dtype(*arrays: Array) -> np.dtype:
    """The type all arrays fit in, also where JAX is told to promote nothing silently."""
    return common_type(*(a.dtype for a in arrays))


def common_type(*dtypes: DTypeLike) -> np.dtype:
    """The type that numbers of all these types fit in.

    JAX promotes no floats of 8 bits or fewer and no integers of fewer than 8. Beside others they
    count as bfloat16 and int8, which hold them exactly.

    >>> common_type(jnp.float8_e4m3fn, jnp.float8_e5m2), common_type(jnp.int4, jnp.float16)
    (dtype(bfloat16), dtype('float16'))
    """
    if len({jnp.dtype(each) for each in dtypes}) > 1:
        dtypes = tuple(map(computable, dtypes))
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*dtypes)


def computable(dtype: DTypeLike) -> DTypeLike:
    """bfloat16 for floats of 8 bits or fewer, int8 for integers of fewer; else `dtype`."""
    if is_tiny(dtype):
        return jnp.bfloat16
    small = jnp.issubdtype(dtype, jnp.integer) and jnp.iinfo(dtype).bits < 8
    return jnp.int8 if small else dtype


def whole_bytes(dtype: DTypeLike) -> DTypeLike:
    """`dtype`, or of numbers of fewer than 8 bits the next one of XLA's own."""
    number = jnp.issubdtype(dtype, jnp.inexact) or jnp.issubdtype(dtype, jnp.integer)
    info = jnp.finfo if jnp.issubdtype(dtype, jnp.inexact) else jnp.iinfo
    return computable(dtype) if number and info(dtype).bits < 8 else dtype


def is_tiny(dtype: DTypeLike) -> bool:
    """Whether it is a float of 8 bits or fewer, too coarse for the factors of a weight."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits <= 8


def scale_rank(t: Array, gain: Gain) -> Array:
    """Multiply t (..., r) by a gain that is None, () or (r,), in the dtype of t."""
    if gain is None:
        return t
    gain = cast(jnp.asarray(gain), t.dtype)
    return lax.mul(t, lax.broadcast_in_dim(gain, t.shape, (t.ndim - 1,) if gain.ndim else ()))


def gain_of(gain: Gain, component: int) -> Gain:
    """The gain of one rank component, from a gain that is None, () or (r,)."""
    return gain if gain is None or jnp.ndim(gain) == 0 else gain[component]


def saturate(total: Array, dtype: DTypeLike) -> Array:
    """To `dtype`; int8 is clipped to +-127 (never -128), int4 to +-7, others are converted."""
    if jnp.issubdtype(dtype, jnp.signedinteger) and jnp.iinfo(dtype).bits <= 8:
        most = jnp.array(jnp.iinfo(dtype).max, total.dtype)
        total = lax.clamp(-most, total, most)
    return cast(total, dtype)


def settled(total: Array, dtype: DTypeLike) -> Array:
    """To `dtype`; a real number becomes the nearest integer where that is asked for."""
    if jnp.issubdtype(total.dtype, jnp.floating) and jnp.issubdtype(dtype, jnp.integer):
        total = lax.round(total, lax.RoundingMethod.TO_NEAREST_EVEN)
    return saturate(total, dtype)


def cast(x: Array, dtype: DTypeLike) -> Array:
    """x in `dtype`; no equation when it already is."""
    return x if x.dtype == jnp.dtype(dtype) else lax.convert_element_type(x, dtype)


def _same_shape(a: Array, b: Array) -> tuple[Array, Array]:
    shape = np.broadcast_shapes(a.shape, b.shape)
    return jnp.broadcast_to(a, shape), jnp.broadcast_to(b, shape)


def formed(
    weights: PyTree, dtype_of: Callable[[Factored], DTypeLike | None] = lambda _: None
) -> PyTree:
    """The tree with a dense array in the place of every `Factored` leaf.

    Args:
        weights: a tree of arrays and `Factored` leaves.
        dtype_of: the type of such an array; None is the type of its base.
    """
    is_thin = lambda leaf: isinstance(leaf, Factored)
    dense = lambda leaf: leaf.dense(dtype_of(leaf)) if is_thin(leaf) else leaf
    return jax.tree.map(dense, weights, is_leaf=is_thin)
