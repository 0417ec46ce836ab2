"""The two halves of an RWKV-7 block: the time mix, which remembers, and the channel mix.

What is cheap is computed again for the gradient: of the elementwise steps around the recurrence
only the inputs are stored. Norms and recurrence are float32 inside.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from springroll import compat
from springroll.models import layers
from springroll.models.rwkv7.config import RWKV7Config
from springroll.models.rwkv7.wkv import Inputs, by_chunk, by_token
from springroll.models.slices import Coded
from springroll.thin.factored_array import Factored
from springroll.trees import Params


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=3)
def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis; type of x outside."""
    unit = _standard(x.astype(jnp.float32), eps).astype(x.dtype)
    row = (1,) * (x.ndim - 1) + weight.shape
    return unit * weight.reshape(row) + bias.reshape(row)


def head_norm(y_BTHN: Array, weight: Array, bias: Array, eps: float) -> Array:
    """Each head's output normalised by itself, then weight and bias (H N,): (B, T, H N) float32."""
    unit = _standard(y_BTHN, eps).reshape(*y_BTHN.shape[:2], -1)
    wide = lambda vector: vector.astype(jnp.float32)[None, None]
    return unit * wide(weight) + wide(bias)


def _standard(x: Array, eps: float) -> Array:
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + np.float32(eps))


def linear(x: Array, w: Array | Coded | Factored) -> Array:
    """x (..., in) times a weight (out, in): (..., out); coded weights are not trained by it."""
    if isinstance(w, Coded | Factored):
        return layers.linear(x, w)
    return _linear(compat.vary_as(x, w), compat.vary_as(w, x))


@jax.custom_vjp
def _linear(x: Array, w: Array) -> Array:
    """The product of floats.

    The weight's gradient is asked for as (x^T g)^T. Of g^T x the CPU compiler would transpose g,
    which a long chain of elementwise steps makes, number by number: a quarter of a training step.
    """
    return jnp.einsum("...i,oi->...o", x, w)


def _forward(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return _linear(x, w), (x, w)


def _backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, w = saved
    flat = lambda y: y.reshape(-1, y.shape[-1])
    of_w = jnp.einsum("ti,to->io", flat(x), flat(gradient)).T
    return jnp.einsum("...o,oi->...i", gradient, w), of_w


_linear.defvjp(_forward, _backward)


_LOG_W = np.float32(-np.exp(-0.5))  # the decay lies above exp(-exp(-1/2)) = 0.545
_recomputed = functools.partial(jax.checkpoint, prevent_cse=False)


def time_mix(
    config: RWKV7Config,
    chunk: int,
    p: Params,
    x_BTD: Array,
    last_BD: Array,
    v_first_BTD: Array,
    wkv: Array,
    first: Array | np.bool_,
    real_BT: Array | None = None,
) -> tuple[Array, Array, Array]:
    """(what is added to the residual stream, the first layer's value, the recurrence after).

    Args:
        p: `attn` of a layer, see `rwkv7.config`.
        last_BD: what the token before x saw here, and `wkv` (B, H, N, N) the recurrence after it.
        v_first_BTD: the value of the first layer, of which later ones take a share.
        first: () bool, whether this is that layer.
        real_BT: False where a token leaves the recurrence as it is; None: nowhere.
    """
    change = _shifted(x_BTD, last_BD) - x_BTD
    mixed = lambda name: (x_BTD, change, p[f"x_{name}"])
    small = lambda name: (*mixed(name), p[f"{name}_down"], p[f"{name}_up"])
    r, k, v = (_matrix(*mixed(name), p[f"{name}_proj"]) for name in "rkv")
    decay = _net(*small("w"), p["w_bias"], jnp.tanh)
    rate = _net(*small("a"), p["a_bias"], None)
    share = _net(*small("v"), p["v_bias"], None)
    gate = _net(*small("g"), None, jax.nn.sigmoid)
    v_first_BTD = jnp.where(first, v, v_first_BTD)
    v = _shared(v, v_first_BTD, share)
    inputs = _inputs(config.heads, r, decay, k, v, rate, p["k_k"], p["k_a"])
    if real_BT is not None:
        kept = real_BT[:, :, None, None]
        inputs = Inputs(*(jnp.where(kept, part, np.float32(0)) for part in inputs))
    if chunk and x_BTD.shape[1] > 1:
        y, wkv = by_chunk(inputs, wkv, chunk)
    else:
        y, wkv = by_token(inputs, wkv)
    y = _output(config.group_eps, y, inputs, gate, p["r_k"], p["g_norm"], p["g_norm_bias"])
    return linear(y, p["o_proj"]), v_first_BTD, wkv


def channel_mix(p: Params, x_BTD: Array, last_BD: Array) -> Array:
    """V relu(K (x + (x before - x) x_k))^2, what is added to the residual stream."""
    inner = _matrix(x_BTD, _shifted(x_BTD, last_BD) - x_BTD, p["x_k"], p["key"])
    return _squared(inner, p["value"])


def _shifted(x_BTD: Array, last_BD: Array) -> Array:
    """Every token's predecessor."""
    return jnp.concatenate([last_BD[:, None].astype(x_BTD.dtype), x_BTD[:, :-1]], axis=1)


def _matrix(x: Array, change: Array, share: Array, w: Array) -> Array:
    """W (x + change * share)."""
    return linear(x + change * _row(share), w)


def _net(
    x: Array,
    change: Array,
    share: Array,
    down: Array,
    up: Array,
    bias: Array | None,
    inside: Callable[[Array], Array] | None,
) -> Array:
    """bias + up inside(down (x + change * share))."""
    y = linear(x + change * _row(share), down)
    y = linear(y if inside is None else inside(y), up)
    return y if bias is None else _row(bias) + y


def _squared(inner: Array, w: Array) -> Array:
    return linear(jnp.square(jax.nn.relu(inner)), w)


@_recomputed
def _shared(v: Array, v_first: Array, share: Array) -> Array:
    return v + (v_first - v) * jax.nn.sigmoid(share)


@functools.partial(_recomputed, static_argnums=0)
def _inputs(
    heads: int,
    r: Array,
    decay: Array,
    k: Array,
    v: Array,
    rate: Array,
    k_k: Array,
    k_a: Array,
) -> Inputs:
    """What the recurrence reads, in float32: w, the rate a, kappa and the key, of each head."""
    split = lambda y: y.reshape(*y.shape[:2], heads, -1).astype(jnp.float32)
    rate = jax.nn.sigmoid(rate)
    one = np.ones((), k.dtype)
    key = k * (one + (rate - one) * _row(k_a))
    kappa = _unit(split(k * _row(k_k)))
    log_w = _LOG_W * jax.nn.sigmoid(split(decay))
    return Inputs(split(r), log_w, split(key), split(v), -kappa, kappa * split(rate))


@functools.partial(_recomputed, static_argnums=0)
def _output(
    eps: float,
    y: Array,
    inputs: Inputs,
    gate: Array,
    r_k: Array,
    weight: Array,
    bias: Array,
) -> Array:
    """(norm of each head's y + (r . key * r_k) v) * gate: (B, T, D) in the gate's type."""
    y_BTD = head_norm(y, weight, bias, eps)
    by_head = r_k.astype(jnp.float32).reshape(1, 1, *y.shape[2:])
    bonus = jnp.sum(inputs.r * inputs.k * by_head, axis=-1, keepdims=True) * inputs.v
    return (y_BTD + bonus.reshape(y_BTD.shape)).astype(gate.dtype) * gate


def _row(vector_D: Array) -> Array:
    return vector_D[None, None]


def _unit(x: Array) -> Array:
    """x / |x| over the last axis; 0, also of the gradient, where x is 0."""
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * lax.rsqrt(jnp.maximum(squares, np.float32(1e-24)))
