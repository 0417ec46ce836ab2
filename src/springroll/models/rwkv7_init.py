"""Fresh parameters of an RWKV-7, as its authors start it.

Channels differ from the start: how much of the token before is mixed in, how fast they forget.
Layers begin as the identity, their last matrices are 0. Matrices that the authors draw orthogonal
are drawn normal with the same variance. Source: github.com/BlinkDL/RWKV-LM, RWKV-v7.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from springroll.models.rwkv7_config import RWKV7Config
from springroll.models.rwkv7_shapes import shapes

# A matrix (out, in) is gain / sqrt(in) N(0, 1), those of the small nets' second half
# gain / sqrt(out): the variance of orthogonal ones times the gain its authors give each.
GAINS = {
    "r_proj": 1.0,
    "k_proj": 0.1,
    "v_proj": 1.0,
    "o_proj": 0.0,
    "w_down": 0.0,
    "a_down": 0.0,
    "v_down": 0.0,
    "g_down": 0.0,
    "w_up": 0.1,
    "a_up": 0.1,
    "v_up": 0.1,
    "g_up": 0.1,
    "key": 1.0,
    "value": 0.0,
}


def init(config: RWKV7Config, key: Array, dtype: Any = jnp.float32) -> dict[str, Any]:
    """The tree of `rwkv7_shapes`; every matrix has a key of its own."""
    is_shape = lambda node: isinstance(node, tuple)
    found, tree = jax.tree_util.tree_flatten_with_path(shapes(config), is_leaf=is_shape)
    keys = jax.random.split(key, len(found))
    vectors = _vectors(config)
    leaves = []
    for (path, shape), k in zip(found, keys, strict=True):
        *_, inside, name = ("", *(entry.key for entry in path))
        if name in ("embed_tokens", "lm_head") or name in GAINS:
            leaves.append(_matrix(name, shape, k).astype(dtype))
        else:
            value = vectors[f"{inside}/{name}" if inside == "ffn" else name]
            leaves.append(jnp.asarray(np.broadcast_to(value, shape), dtype))
    return tree.unflatten(leaves)


def _matrix(name: str, shape: tuple[int, ...], key: Array) -> Array:
    if name == "embed_tokens":
        return jax.random.uniform(key, shape, jnp.float32, -1e-4, 1e-4)
    out, into = shape[-2:]
    gain = 0.5 if name == "lm_head" else GAINS[name]
    scale = gain * (out if name.endswith("_up") else into) ** -0.5
    return jax.random.normal(key, shape, jnp.float32) * np.float32(scale)


def _vectors(c: RWKV7Config) -> dict[str, np.ndarray | float]:
    """Every vector by name, (D,) or (L, D) or one number."""
    channel, layer = np.arange(c.hidden), np.arange(c.layers)[:, None]
    after = 1 - layer / c.layers  # from 1 down to almost 0
    depth = layer / max(1, c.layers - 1)  # from 0 up to 1
    ratio = channel / c.hidden
    line = channel / max(1, c.hidden - 1)
    zigzag = (channel % c.head_dim) / max(1, c.head_dim - 1) * 2 - 1
    zigzag = zigzag * np.abs(zigzag)
    mixed = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}
    found: dict[str, np.ndarray | float] = {
        f"x_{name}": 1 - ratio ** (power * after) for name, power in mixed.items()
    }
    found |= dict.fromkeys(("embed_norm", "attn_norm", "ffn_norm", "norm"), 1.0)
    biases = ("embed_norm_bias", "attn_norm_bias", "ffn_norm_bias", "norm_bias", "g_norm_bias")
    found |= dict.fromkeys(biases, 0.0)
    return found | {
        "w_bias": -5.5 + 6 * line ** (1 + depth**0.3) + 2.5 * zigzag,
        "a_bias": -0.19 + 0.3 * zigzag + 0.4 * (line - 0.5),
        "v_bias": 0.73 - 0.4 * (line - 0.5),
        "k_k": 0.71 - 0.1 * (line - 0.5),
        "k_a": 1.02,
        "r_k": -0.04,
        "g_norm": np.broadcast_to(((1 + layer) / c.layers) ** 0.7, (c.layers, c.hidden)),
        "ffn/x_k": 1 - ratio ** (after**4),
    }
