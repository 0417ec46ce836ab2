"""The elementary layers: norm, gate, and products with a weight.

For the gradient of norm and gate only their inputs are stored. A weight may be an array or coded
(`Int8`, `Nf4`), and either of them with a thin term (`Factored`), as of an adapter: then the base
is frozen, and only the weight itself is stored for its product.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from springroll import compat
from springroll.models.slices import Coded, parts_of, sliced, slices_for, summed_slices
from springroll.quant.int8_weights import Int8
from springroll.quant.nf4_weights import Nf4, nf4_real
from springroll.thin.factored_array import Factored
from springroll.trees import Params, PyTree

Carry = TypeVar("Carry")
Product: TypeAlias = Callable[..., Array]  # (x (..., in), weight, *rest) -> (..., out)


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=(2, 3))
def rms_norm(x: Array, weight: Array, eps: float, plus_one: bool = False) -> Array:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis; float32 inside, type of x outside.

    With `plus_one` it is times 1 + weight, that product in float32 too.
    """
    wide = x.astype(jnp.float32)
    mean = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    unit = wide * jax.lax.rsqrt(mean + np.float32(eps))
    weight = weight.reshape((1,) * (x.ndim - 1) + weight.shape)
    if plus_one:
        return (unit * (1 + weight.astype(jnp.float32))).astype(x.dtype)
    return unit.astype(x.dtype) * weight


def soft_cap(x: Array, cap: float) -> Array:
    """cap tanh(x / cap), which stays within +-cap; x itself if cap is 0."""
    return x if not cap else jnp.tanh(x / np.asarray(cap, x.dtype)) * np.asarray(cap, x.dtype)


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=(2, 3))
def gated(gate: Array, up: Array, limit: float, activation: str = "silu") -> Array:
    """SwiGLU, silu(gate) * up, or with "gelu_tanh" that of Gemma; with a `limit` that of gpt-oss.

    That is (up + 1) * gate * sigmoid(1.702 gate), gate clipped to at most limit, up to +-limit.
    """
    if activation == "gelu_tanh":
        return jax.nn.gelu(gate, approximate=True) * up
    if not limit:
        return jax.nn.silu(gate) * up
    most = np.asarray(limit, gate.dtype)
    gate, up = jnp.minimum(gate, most), jnp.clip(up, -most, most) + np.ones((), up.dtype)
    return up * gate * jax.nn.sigmoid(gate * np.asarray(1.702, gate.dtype))


def linear(x: Array, w: Array | Coded | Factored) -> Array:
    """x (..., in) times a weight (out, in): (..., out).

    A coded weight takes the type of x where the two meet; the scale of an `Int8` comes after the
    product. A `Factored` weight is frozen but for its factors, see `with_thin_term`.
    """
    if isinstance(w, Factored):
        return with_thin_term(linear, x, w)
    if isinstance(w, Nf4):
        x, codes = lax.optimization_barrier((x, w.codes))
        return linear(x, nf4_real(replace(w, codes=codes), x.dtype))
    if not isinstance(w, Int8):
        if not (is_short(x) and is_short(w)):
            return jnp.einsum("...i,oi->...o", x, w)
        return _short_linear(compat.vary_as(x, w), compat.vary_as(w, x))
    wide = x.dtype if x.dtype == jnp.float64 else jnp.float32
    # The barrier ties the conversion to its product: loops of decoding would convert the whole
    # model before they start, and hold it as floats.
    x, values = lax.optimization_barrier((x, w.values))
    y = jnp.einsum("...i,oi->...o", x, values.astype(x.dtype), preferred_element_type=wide)
    scale = w.scale.astype(wide).reshape(*(1,) * (y.ndim - 1), -1)
    return (y * scale).astype(x.dtype)


def with_thin_term(product: Product, x: Array, w: Factored, *rest: Array) -> Array:
    """product(x, base, *rest) of a frozen base, and two thin products beside it.

    Args:
        product: of weights (..., out, in), such as `linear`, which knows what the base is.
        x: (..., in).
        w: one layer of a weight: base (..., out, in), left (..., out, r), right (..., in, r); the
            thin products are in the type of x. `gain` is None.
        rest: further arguments of the product.
    """
    left, right = w.left.astype(x.dtype), jnp.swapaxes(w.right, -1, -2).astype(x.dtype)
    thin = product(product(x, right, *rest), left, *rest)
    return cast(Array, _frozen(product, x.shape[-1], x, w.base, rest)) + thin


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _frozen(
    product: Product, width: int, x: Array, w: Array | Coded, rest: tuple[Array, ...]
) -> Array:
    """A product whose gradient is that of x alone. What a scan stores of it for every layer is the
    weight as it is coded: neither x nor floats that the codes stand for."""
    del width
    return product(x, w, *rest)


def _frozen_backward(
    product: Product, width: int, saved: tuple[Array | Coded, tuple[Array, ...]], dy: Array
) -> tuple[Array, None, None]:
    w, rest = saved
    anywhere = jnp.zeros((*dy.shape[:-1], width), dy.dtype)  # the product is linear in x
    return jax.vjp(lambda x: product(x, w, *rest), anywhere)[1](dy)[0], None, None


_frozen.defvjp(
    lambda product, width, x, w, rest: (_frozen(product, width, x, w, rest), (w, rest)),
    _frozen_backward,
)


def is_short(x: Array) -> bool:
    """Whether products of x should be asked for in float32, and rounded afterwards.

    That is of bfloat16 on a CPU: XLA has products of bfloat16 with float32 sums there, four to six
    times faster than those of float32 on a processor with AMX. Asked for a bfloat16 result it
    converts both operands to float32 first. The value is the same up to the order of sums.
    """
    return x.dtype == jnp.bfloat16 and compat.platform() == "cpu"


def rounded_einsum(spec: str, x: Array, y: Array) -> Array:
    """`jnp.einsum(spec, x, y)`, summed in float32 and rounded to the type of x."""
    return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32).astype(x.dtype)


@jax.custom_vjp
def _short_linear(x: Array, w: Array) -> Array:
    """x (..., T, in) times w (out, in), both bfloat16; so are the products of its gradient.

    XLA wants the right operand of such a product to lie row by row on a CPU. With the weight there,
    a loop of decoding, T = 1, would hold a second copy of the layers, turned over.
    """
    if x.ndim > 1 and x.shape[-2] == 1:
        y = jnp.einsum("oi,...i->o...", w, x, preferred_element_type=jnp.float32)
        return jnp.moveaxis(y, 0, -1).astype(x.dtype)
    return float32_product(x, w).astype(x.dtype)


def float32_product(x: Array, w: Array) -> Array:
    """x (..., in) times w (out, in): (..., out), summed and given in float32."""
    return jnp.einsum("...i,oi->...o", x, w, preferred_element_type=jnp.float32)


def scan_layers(
    block: Callable[[Carry, PyTree], tuple[Carry, PyTree]], x: Carry, stacks: PyTree
) -> tuple[Carry, PyTree]:
    """`lax.scan(block, x, stacks)`, on a CPU without a float32 copy of stacks in bfloat16.

    XLA cuts no slices of bfloat16 there: it converts the stack, once and whole, where the barrier
    does not tie that to the slice. It also writes none: it would convert all results of the layers
    at every layer, so that they are collected as their bits.
    """
    leaves = jax.tree.leaves(stacks)
    if not any(map(is_short, leaves)):
        return lax.scan(block, x, stacks)

    def one(x: Carry, i: Array) -> tuple[Carry, PyTree]:
        i, tied = lax.optimization_barrier((i, stacks))
        cut = lambda stack: lax.dynamic_index_in_dim(stack, i, 0, keepdims=False)
        x, y = block(x, jax.tree.map(cut, tied))
        return x, jax.tree.map(lambda y: as_bits(y) if is_short(y) else y, y)

    x, ys = lax.scan(one, x, jnp.arange(leaves[0].shape[0], dtype=jnp.int32))
    return x, jax.tree.map(lambda y: of_bits(y) if y.dtype == jnp.uint16 else y, ys)


def as_bits(x: Array) -> Array:
    """bfloat16 as uint16, which a CPU writes in its place."""
    return lax.bitcast_convert_type(x, jnp.uint16)


def of_bits(x: Array) -> Array:
    """The bfloat16 whose bits these are."""
    return lax.bitcast_convert_type(x, jnp.bfloat16)


_short_linear.defvjp(
    lambda x, w: (_short_linear(x, w), (x, w)),
    lambda saved, dy: (
        rounded_einsum("...o,oi->...i", dy, saved[1]),
        rounded_einsum("...o,...i->oi", dy, saved[0]),
    ),
)


def swiglu(params: Params, x: Array, activation: str = "silu") -> Array:
    """down(activation(gate(x)) * up(x)); of many tokens the hidden units one slice after the
    other."""
    hidden, parts = parts_of(params["down_proj"])
    count = slices_for(math.prod(x.shape[:-1]), 2 * hidden, parts)

    def units(params: Params, x: Array) -> Array:
        gate, up = linear(x, params["gate_proj"]), linear(x, params["up_proj"])
        return linear(gated(gate, up, 0.0, activation), params["down_proj"])

    if count == 1:
        return units(params, x)
    axis = {"gate_proj": 0, "up_proj": 0, "down_proj": 1}
    slices = {name: sliced(w, count, axis[name]) for name, w in params.items()}
    return summed_slices(units, slices, x)
