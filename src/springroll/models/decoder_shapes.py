"""The parameter tree of a decoder: Hugging Face names, matrices (out, in), blocks stacked.

Letters: V vocabulary, D hidden, L layers, H and N query and key-value heads of width K, F width of
the feed-forward net, E experts. What stands in brackets only some models have.

    embed_tokens (V, D)
    layers: input_layernorm, post_attention_layernorm (L, D)
            self_attn: q_proj (L, H K, D), k_proj, v_proj (L, N K, D), o_proj (L, D, H K)
                       [q_bias, k_bias, v_bias, o_bias, q_norm, k_norm, sinks (L, H)]
            mlp: gate_proj, up_proj (L, F, D), down_proj (L, D, F)
                 or with experts: gate (L, E, D), the router,
                 [gate_bias, e_score_correction_bias (L, E)],
                 experts: gate_proj, up_proj (L, E, F, D), down_proj (L, E, D, F)
                          [gate_bias, up_bias (L, E, F), down_bias (L, E, D)]
    norm (D,)
    [lm_head (V, D)]
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from springroll.models.decoder_config import DecoderConfig

Shapes: TypeAlias = dict[str, Any]


def shapes(config: DecoderConfig) -> Shapes:
    """The tree with a shape (a tuple of integers) at every leaf."""
    c, stack = config, config.layers
    tree: Shapes = {
        "embed_tokens": (c.vocab, c.hidden),
        "layers": {
            "input_layernorm": (stack, c.hidden),
            "self_attn": _attention(c),
            "post_attention_layernorm": (stack, c.hidden),
            "mlp": _experts(c) if c.experts else _net(c, (stack,)),
        },
        "norm": (c.hidden,),
    }
    return tree if c.tied else tree | {"lm_head": (c.vocab, c.hidden)}


def size(tree: Shapes) -> int:
    """How many numbers a tree of shapes stands for."""
    return sum(size(x) if isinstance(x, dict) else math.prod(x) for x in tree.values())


def _attention(c: DecoderConfig) -> Shapes:
    q, kv, stack = c.heads * c.head_dim, c.kv_heads * c.head_dim, c.layers
    tree: Shapes = {
        "q_proj": (stack, q, c.hidden),
        "k_proj": (stack, kv, c.hidden),
        "v_proj": (stack, kv, c.hidden),
        "o_proj": (stack, c.hidden, q),
    }
    if c.qkv_bias:
        tree |= {"q_bias": (stack, q), "k_bias": (stack, kv), "v_bias": (stack, kv)}
    if c.o_bias:
        tree["o_bias"] = (stack, c.hidden)
    if c.qk_norm:
        whole = c.qk_norm == "whole"
        tree["q_norm"] = (stack, q if whole else c.head_dim)
        tree["k_norm"] = (stack, kv if whole else c.head_dim)
    if c.sinks:
        tree["sinks"] = (stack, c.heads)
    return tree


def _net(c: DecoderConfig, stack: tuple[int, ...]) -> Shapes:
    return {
        "gate_proj": (*stack, c.ffn, c.hidden),
        "up_proj": (*stack, c.ffn, c.hidden),
        "down_proj": (*stack, c.hidden, c.ffn),
    }


def _experts(c: DecoderConfig) -> Shapes:
    stack = (c.layers, c.experts)
    experts = _net(c, stack)
    router: Shapes = {"gate": (*stack, c.hidden)}
    if c.selection_bias:
        router["e_score_correction_bias"] = stack
    if c.expert_bias:
        router["gate_bias"] = stack
        wide, narrow = (*stack, c.ffn), (*stack, c.hidden)
        experts |= {"gate_bias": wide, "up_bias": wide, "down_bias": narrow}
    return {**router, "experts": experts}
