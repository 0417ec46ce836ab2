"""Causal attention with shared key-value heads.

Letters: B batch, T time of the query, S time of the key, H query heads, N key-value heads,
G = H / N query heads per key-value head, K width of a head, D width of the model.
"""

import functools
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from springroll import compat
from springroll.models.attention_scores import ALL, MASKED, Sight, scores, seen
from springroll.models.blocked_attention import attend_blocks
from springroll.models.decoder_config import DecoderConfig
from springroll.models.layers import linear, rms_norm
from springroll.models.rope import Rotation, rotate
from springroll.models.slices import sliced, slices_for, summed_slices
from springroll.trees import Params

SLICED = (  # what a group of heads has of its own, by the axis that heads are on
    ("q_proj", "k_proj", "v_proj", "q_bias", "k_bias", "v_bias", "sinks"),
    ("o_proj",),
)
FORMED = {"cpu": 1 << 20, "device": 1 << 24}  # scores at once: a processor's cache holds 4 MiB
BLOCK = 128  # queries, and keys, of the largest block, at least
ALIGNED = 16  # sizes of blocks are multiples of it


def attention(
    config: DecoderConfig,
    params: Params,
    x_BTD: Array,
    turn: Rotation,
    sight: Sight = ALL,
) -> Array:
    """The attention half of a block, before it is added to the residual stream: (B, T, D).

    `params` holds q_proj (H K, D), k_proj and v_proj (N K, D), o_proj (D, H K), and where the
    model has them q_bias, k_bias, v_bias, o_bias, the norm weights q_norm, k_norm, and sinks (H,).
    `sight` says which positions up to itself a position sees.
    """
    count = head_slices(config, x_BTD)
    if count == 1:
        return _biased(params, "o", _heads(config, params, x_BTD, turn, sight))
    own = lambda axis: {
        name: sliced(params[name], count, axis) for name in SLICED[axis] if name in params
    }
    common = {name: params[name] for name in ("q_norm", "k_norm") if name in params}
    narrow = replace(
        config,
        heads=config.heads // count,
        kv_heads=config.kv_heads // count,
        head_dim=config.head_dim,
    )
    part = lambda slice, x: _heads(narrow, common | slice, x, turn, sight)
    return _biased(params, "o", summed_slices(part, own(0) | own(1), x_BTD))


def head_slices(config: DecoderConfig, x_BTD: Array) -> int:
    """In how many groups of heads so long a text is attended to."""
    if config.qk_norm == "whole":  # a norm over all heads
        return 1
    width = (config.heads + 2 * config.kv_heads) * config.head_dim
    return slices_for(x_BTD.shape[0] * x_BTD.shape[1], width, config.kv_heads)


def _heads(
    config: DecoderConfig, params: Params, x_BTD: Array, turn: Rotation, sight: Sight
) -> Array:
    """What these heads add, without the last bias: (B, T, D)."""
    q, k, v = queries_keys_values(config, params, x_BTD)
    y_BTHK = attend(config, rotate(q, turn), rotate(k, turn), v, params.get("sinks"), sight)
    return linear(y_BTHK.reshape(*x_BTD.shape[:2], -1), params["o_proj"])


def queries_keys_values(
    config: DecoderConfig, params: Params, x_BTD: Array
) -> tuple[Array, Array, Array]:
    """q (B, T, H, K), k and v (B, T, N, K) before they are turned by their positions."""
    heads = (config.heads, config.kv_heads, config.kv_heads)
    q, k, v = (_project(params, name, x_BTD) for name in "qkv")
    normed = lambda y, name: rms_norm(y, params[name], config.norm_eps, config.norm_plus_one)
    if config.qk_norm == "whole":
        q, k = normed(q, "q_norm"), normed(k, "k_norm")
    split = lambda y, n: y.reshape(*y.shape[:2], n, config.head_dim)
    q, k, v = (split(y, n) for y, n in zip((q, k, v), heads, strict=True))
    if config.qk_norm == "head":
        q, k = normed(q, "q_norm"), normed(k, "k_norm")
    return q, k, v


def from_heads(params: Params, y_BTHK: Array) -> Array:
    """The outputs of all heads through the last matrix: (B, T, D)."""
    return _project(params, "o", y_BTHK.reshape(*y_BTHK.shape[:2], -1))


def attend(
    config: DecoderConfig,
    q_BTHK: Array,
    k_BSNK: Array,
    v_BSNK: Array,
    sinks_H: Array | None = None,
    sight: Sight = ALL,
) -> Array:
    """softmax(scores(q k)) v over keys no later than the query: (B, T, H, K).

    The queries are those of the last T of S positions. Scores and softmax are float32 whatever the
    inputs are, and computed again for the gradient. A sink is one more score per head whose key has
    no value: it takes weight away from the others. Where all scores would be more than `FORMED`
    they are taken in blocks, one after the other. What cuDNN computes it does where there is one.
    """
    if _is_cudnns(config, q_BTHK, k_BSNK, sinks_H, sight):
        scale = config.query_scale or config.head_dim
        return compat.cudnn_attention(q_BTHK, k_BSNK, v_BSNK, scale**-0.5)
    batch, time, heads, _ = q_BTHK.shape
    size = block_size(batch * heads, time, k_BSNK.shape[1])
    if size is None:
        return _formed(config, q_BTHK, k_BSNK, v_BSNK, sinks_H, sight)
    return attend_blocks(config, size, (q_BTHK, k_BSNK, v_BSNK, sinks_H), sight)


def _is_cudnns(
    config: DecoderConfig, q: Array, k: Array, sinks_H: Array | None, sight: Sight
) -> bool:
    """Whether it is causal attention as cuDNN has it, on a device that has cuDNN."""
    plain = all(x is None for x in (*sight, sinks_H)) and not config.score_cap
    short = q.dtype in (jnp.bfloat16, jnp.float16)
    return plain and short and q.shape[1] == k.shape[1] and compat.has_cudnn_attention(q.shape[-1])


def block_size(rows: int, queries: int, keys: int, platform: str | None = None) -> int | None:
    """Queries, and keys, of a block, with `rows` heads of all texts; None: scores are formed at
    once. The platform is that which is traced for, if none is given."""
    most = FORMED["cpu" if (platform or compat.platform()) == "cpu" else "device"]
    largest = max(BLOCK, 1 << max(0, math.isqrt(most // rows).bit_length() - 1))
    if rows * queries * keys <= most or keys <= largest:
        return None
    even = -(-keys // -(-keys // largest))  # blocks of about the same size
    return -(-even // ALIGNED) * ALIGNED


def keys_per_query(rows: int, time: int, platform: str | None = None) -> float:
    """Keys that a query of such a text meets, whether it sees them or not: a mean."""
    size = block_size(rows, time, time, platform)
    return time if size is None else (-(-time // size) + 1) * size / 2


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=0)
def _formed(
    config: DecoderConfig, q: Array, k: Array, v: Array, sinks_H: Array | None, sight: Sight
) -> Array:
    time = k.shape[1]
    score = scores(config, q, k)
    at = lax.iota(jnp.int32, time)
    score = jnp.where(seen(sight, at[time - q.shape[1] :], at), score, np.float32(MASKED))
    if sinks_H is not None:
        sink = sinks_H.astype(jnp.float32).reshape(1, score.shape[1], score.shape[2], 1, 1)
        score = jnp.concatenate([score, jnp.broadcast_to(sink, (*score.shape[:-1], 1))], axis=-1)
    weight = jax.nn.softmax(score, axis=-1)[..., :time].astype(v.dtype)
    return jnp.einsum("BNGTS,BSNK->BTNGK", weight, v).reshape(q.shape)


def _project(params: Params, name: str, x_BTD: Array) -> Array:
    return _biased(params, name, linear(x_BTD, params[f"{name}_proj"]))


def _biased(params: Params, name: str, y_BTD: Array) -> Array:
    return y_BTD + params[f"{name}_bias"][None, None] if f"{name}_bias" in params else y_BTD
