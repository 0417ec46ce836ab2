"""A decoder that remembers: whole prompts at once, then one token of every row after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from springroll.models.attention import from_heads, queries_keys_values
from springroll.models.kv_cache import Cache, Layers, attend_cached, attend_padded, visible
from springroll.models.norm import rms_norm
from springroll.models.rope import Rotation, rotate, rotation_at

if TYPE_CHECKING:
    from springroll.models.decoder import Decoder


def read(model: Decoder, params: Any, tokens: Array, lengths: Array) -> tuple[Array, Cache]:
    """`Generative.read` of a decoder; what is found is a cache of T slots."""
    config = model.config
    rows, time = tokens.shape
    place = jnp.arange(time, dtype=jnp.int32)[None, :] - (time - lengths)[:, None]
    turn = _turn(model, jnp.maximum(place, 0).reshape(-1))
    flat = lambda y: y.reshape(1, rows * time, *y.shape[2:])
    turned = lambda y: rotate(flat(y), turn).reshape(y.shape)

    def block(x: Array, scanned: tuple[Any, Array | None]) -> tuple[Array, Cache]:
        layer, window = scanned
        y = rms_norm(x, layer["input_layernorm"], config.norm_eps)
        q, k, v = queries_keys_values(config, layer["self_attn"], y)
        k = turned(k)
        sinks = layer["self_attn"].get("sinks")
        y = attend_padded(turned(q), k, v, lengths, window, sinks)
        x = x + from_heads(layer["self_attn"], y)
        return _feed_forward(model, layer, x), Cache(k.swapaxes(1, 2), v.swapaxes(1, 2))

    layers = (params["layers"], model.windows(time))
    x, found = lax.scan(block, model.embed(params, tokens), layers)
    return model.head(params, x[:, -1:])[:, 0], found


def step(
    model: Decoder, params: Any, tokens: Array, memory: Layers, seen: Array, clock: Array
) -> tuple[Array, Layers]:
    """`Generative.step` of a decoder; what is found has one slot.

    Layer after layer and not in a scan, which would copy each layer's weights and memory out of
    their stacks before it used them: as much traffic again as the step itself.
    """
    config = model.config
    slots = memory[0].k.shape[3]
    turn = _turn(model, seen)
    turned = lambda y: rotate(y.swapaxes(0, 1), turn).swapaxes(0, 1)  # rows, as if they were times
    windows = model.windows(slots + 1)
    layers = params["layers"]
    x, found = model.embed(params, tokens[:, None]), []
    for i, old in enumerate(memory):
        layer = layers[i] if isinstance(layers, list) else jax.tree.map(lambda w: w[i], layers)  # noqa: B023
        y = rms_norm(x, layer["input_layernorm"], config.norm_eps)
        q, k, v = queries_keys_values(config, layer["self_attn"], y)
        new = Cache(turned(k).swapaxes(1, 2), v.swapaxes(1, 2))
        see = visible(slots, seen, clock, None if windows is None else windows[i])
        y = attend_cached(
            turned(q)[:, 0], new, (old.k[0], old.v[0]), see, layer["self_attn"].get("sinks")
        )
        x = x + from_heads(layer["self_attn"], y[:, None])
        x = _feed_forward(model, layer, x)
        found.append(Cache(new.k[None], new.v[None]))
    return model.head(params, x)[:, 0], tuple(found)


def _feed_forward(model: Decoder, layer: Any, x: Array) -> Array:
    y = rms_norm(x, layer["post_attention_layernorm"], model.config.norm_eps)
    return x + model.feed_forward(layer["mlp"], y)


def _turn(model: Decoder, place: Array) -> Rotation:
    c = model.config
    return rotation_at(place, c.head_dim, c.rope_theta, c.rope_scaling)
