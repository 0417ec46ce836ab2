"""The shape of an RWKV-7, its exact parameter count, and configurations by name.

The parameter tree of an RWKV-7: matrices (out, in), blocks stacked.

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

from dataclasses import dataclass
from typing import Any

from springroll.errors import InputError
from springroll.models.config_checks import MOST_STACKED, check_numbers, check_sizes
from springroll.models.decoder_config import Fields, Shapes, size


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
    tree: Shapes = {f"x_{name}": vector for name in "rwkvag"}
    tree |= {f"{name}_proj": (c.layers, c.hidden, c.hidden) for name in "rkvo"}
    ranks = {"w": c.decay_rank, "a": c.a_rank, "v": c.v_rank, "g": c.gate_rank}
    for name, rank in ranks.items():
        tree[f"{name}_down"] = (c.layers, rank, c.hidden)
        tree[f"{name}_up"] = (c.layers, c.hidden, rank)
    tree |= {f"{name}_bias": vector for name in "wav"}
    return tree | dict.fromkeys(("k_k", "k_a", "r_k", "g_norm", "g_norm_bias"), vector)


GROUP_EPS = 64e-5  # of published models, all of which have heads of width 64


@dataclass(frozen=True, kw_only=True)
class RWKV7Config:
    """RWKV-7 "Goose" (x070).

    `ffn` is the width of the channel mix; the four ranks are those of the small nets that make the
    decay w, the rate a, the share v of the first layer's value and the gate g from the token.
    """

    vocab: int
    hidden: int
    layers: int
    ffn: int
    head_dim: int = 64
    decay_rank: int = 64
    a_rank: int = 64
    v_rank: int = 32
    gate_rank: int = 128
    norm_eps: float = 1e-5
    group_eps: float = GROUP_EPS  # of the norm of each head's output

    def __post_init__(self) -> None:
        check_sizes(self, "vocab", "hidden", "ffn", "head_dim", *RANKS)
        check_sizes(self, "layers", most=MOST_STACKED)
        check_numbers(self, "norm_eps", "group_eps")
        if self.hidden % self.head_dim:
            raise InputError(
                f"hidden is {self.hidden}; heads of width {self.head_dim} must divide it evenly"
            )

    @property
    def heads(self) -> int:
        return self.hidden // self.head_dim

    @property
    def parameters(self) -> int:
        """Numbers in the parameter tree, exactly; layer 0's share v, which is never read, too."""
        return size(shapes(self))

    @property
    def active_parameters(self) -> int:
        """Numbers that one token meets."""
        return self.parameters


RANKS = ("decay_rank", "a_rank", "v_rank", "gate_rank")


def rwkv7(hidden: int, layers: int, ranks: tuple[int, int, int, int], **rest: Any) -> RWKV7Config:
    """A model whose channel mix is four times as wide as the model; `rest` are other fields."""
    fields: Fields = {"vocab": 65536, "ffn": 4 * hidden} | rest
    return RWKV7Config(
        hidden=hidden, layers=layers, **dict(zip(RANKS, ranks, strict=True)), **fields
    )


def _bytes(head_dim: int) -> Fields:
    """Bytes in, bytes out. The epsilon is the one that Hugging Face's format implies."""
    return {"vocab": 256, "head_dim": head_dim, "group_eps": head_dim * 1e-5}


RWKV7_CONFIGS: dict[str, RWKV7Config] = {
    "rwkv7-tiny": rwkv7(32, 2, (8, 8, 8, 8), **_bytes(16)),
    "rwkv7-1m": rwkv7(128, 4, (16, 16, 16, 32), **_bytes(32)),
    "rwkv7-4m": rwkv7(256, 5, (32, 32, 16, 64), **_bytes(64)),
    # Published models, as arXiv 2503.14456 lists their sizes.
    "rwkv7-0.1b": rwkv7(768, 12, (64, 64, 32, 128)),
    "rwkv7-0.4b": rwkv7(1024, 24, (64, 64, 32, 128)),
    "rwkv7-1.5b": rwkv7(2048, 24, (96, 96, 64, 256)),
    "rwkv7-2.9b": rwkv7(2560, 32, (96, 96, 64, 320)),
}
