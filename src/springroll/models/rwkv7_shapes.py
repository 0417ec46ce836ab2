"""The parameter tree of an RWKV-7: matrices (out, in), blocks stacked.

Letters: V vocabulary, D hidden, L layers, F width of the channel mix, R rank of a small net.

    embed_tokens (V, D), embed_norm, embed_norm_bias (D,)
    layers: attn_norm, attn_norm_bias, ffn_norm, ffn_norm_bias (L, D)
            attn: x_r, x_w, x_k, x_v, x_a, x_g (L, D), how much of the token before is mixed in
                  r_proj, k_proj, v_proj, o_proj (L, D, D)
                  w_down, a_down, v_down, g_down (L, R, D), w_up, a_up, v_up, g_up (L, D, R),
                  w_bias, a_bias, v_bias (L, D); layer 0 has no use for v_down, v_up, v_bias
                  k_k, k_a, r_k, g_norm, g_norm_bias (L, D)
            ffn: x_k (L, D), key (L, F, D), value (L, D, F)
    norm, norm_bias (D,)
    lm_head (V, D)

The names are those of flash-linear-attention's folders, shortened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from springroll.models.decoder_shapes import Shapes

if TYPE_CHECKING:
    from springroll.models.rwkv7_config import RWKV7Config


def shapes(config: RWKV7Config) -> Shapes:
    """The tree with a shape (a tuple of integers) at every leaf."""
    c, vector = config, (config.layers, config.hidden)
    norms = ("attn_norm", "attn_norm_bias", "ffn_norm", "ffn_norm_bias")
    ffn = {
        "x_k": vector,
        "key": (c.layers, c.ffn, c.hidden),
        "value": (c.layers, c.hidden, c.ffn),
    }
    return {
        "embed_tokens": (c.vocab, c.hidden),
        "embed_norm": (c.hidden,),
        "embed_norm_bias": (c.hidden,),
        "layers": {**dict.fromkeys(norms, vector), "attn": _time_mix(c), "ffn": ffn},
        "norm": (c.hidden,),
        "norm_bias": (c.hidden,),
        "lm_head": (c.vocab, c.hidden),
    }


def _time_mix(c: RWKV7Config) -> Shapes:
    vector = (c.layers, c.hidden)
    tree: dict[str, Any] = {f"x_{name}": vector for name in "rwkvag"}
    tree |= {f"{name}_proj": (c.layers, c.hidden, c.hidden) for name in "rkvo"}
    ranks = {"w": c.decay_rank, "a": c.a_rank, "v": c.v_rank, "g": c.gate_rank}
    for name, rank in ranks.items():
        tree[f"{name}_down"] = (c.layers, rank, c.hidden)
        tree[f"{name}_up"] = (c.layers, c.hidden, rank)
    tree |= {f"{name}_bias": vector for name in "wav"}
    return tree | dict.fromkeys(("k_k", "k_a", "r_k", "g_norm", "g_norm_bias"), vector)
