"""The shape of a decoder, its exact parameter count, and configurations by name.

The parameter tree of a decoder: Hugging Face names, matrices (out, in), blocks stacked.

Letters: V vocabulary, D hidden, L layers, H and N query and key-value heads of width K, F width of
the feed-forward net, E experts. What stands in brackets only some models have.

    embed_tokens (V, D)
    layers: input_layernorm, post_attention_layernorm (L, D)
            [pre_feedforward_layernorm, post_feedforward_layernorm (L, D)]
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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar, get_args, overload

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from springroll.errors import InputError, brief, expect, suggestion
from springroll.models.config_checks import MOST_STACKED, check_numbers, check_sizes
from springroll.models.rope import (
    DynamicScaling,
    Llama3Scaling,
    LongRopeScaling,
    Rope,
    RopeScaling,
    YarnScaling,
)
from springroll.trees import PyTree, named_leaves

Fields: TypeAlias = dict[str, Any]  # of a configuration
Shapes: TypeAlias = dict[str, PyTree]
"""A tree of dictionaries with a shape, a tuple of integers, at every leaf."""


def shapes(config: DecoderConfig) -> Shapes:
    """The tree with a shape (a tuple of integers) at every leaf."""
    c, stack = config, config.layers
    norms = ("input", "post_attention")
    norms += ("pre_feedforward", "post_feedforward") if c.norms_after else ()
    tree: Shapes = {
        "embed_tokens": (c.vocab, c.hidden),
        "layers": {
            **{f"{name}_layernorm": (stack, c.hidden) for name in norms},
            "self_attn": _attention(c),
            "mlp": _experts(c) if c.experts else _net(c, (stack,)),
        },
        "norm": (c.hidden,),
    }
    return tree if c.tied else tree | {"lm_head": (c.vocab, c.hidden)}


def size(tree: Shapes) -> int:
    """How many numbers a tree of shapes stands for."""
    return sum(size(x) if isinstance(x, dict) else math.prod(x) for x in tree.values())


def shape_leaves(tree: Shapes) -> dict[str, tuple[int, ...]]:
    """The shapes by their paths, in the order of the tree."""
    return named_leaves(tree, is_leaf=_is_shape)


def structs(tree: Shapes, dtype: DTypeLike = jnp.float32) -> PyTree:
    """The tree of arrays with these shapes, without values."""
    struct = lambda shape: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
    return jax.tree.map(struct, tree, is_leaf=_is_shape)


def structure(tree: Shapes) -> Any:
    """The structure, a `PyTreeDef`, of a tree of arrays with these shapes."""
    return jax.tree.structure(tree, is_leaf=_is_shape)


def _is_shape(node: PyTree) -> bool:
    return isinstance(node, tuple)


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


Router: TypeAlias = Literal["softmax", "sigmoid"]
QkNorm: TypeAlias = Literal["", "head", "whole"]
Activation: TypeAlias = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Llama, Mistral, Qwen, Phi-3, SmolLM3, Gemma and gpt-oss are settings of this one record.

    `ffn` is the width of the feed-forward net, with experts the width of each expert. `experts=0`
    is a dense model. `switch_loss` and `z_loss` are the weights of the two routing losses in
    `Decoder.loss` (0: only reported). The fields after `z_loss` are what gpt-oss adds to a Llama,
    those after `swiglu_limit` what Mistral, SmolLM3, Phi-3 and Gemma add.

    `windowed` and `roped` say of each layer whether its window is limited and whether its heads
    turn by their position. They repeat: layer i has the value at i modulo their length.
    """

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-6
    tied: bool = False  # the head is the embedding
    qkv_bias: bool = False
    qk_norm: QkNorm = ""  # RMSNorm of q and k: per head (Qwen3) or over all heads at once (OLMoE)
    init_std: float = 0.02
    experts: int = 0
    top_k: int = 0
    router: Router = "softmax"
    renormalise: bool = True  # the weights of the chosen experts sum to 1
    selection_bias: bool = False  # a bias that chooses experts and has no part in their weights
    switch_loss: float = 0.0
    z_loss: float = 0.0
    o_bias: bool = False
    expert_bias: bool = False  # in the router and in every matrix of the experts
    sinks: bool = False  # a learned score per head that takes part in the softmax and has no value
    window: int = 0  # the windowed layers see only this many tokens; 0: all layers see all
    swiglu_limit: float = 0.0  # experts compute (up + 1) gate sigmoid(1.702 gate), clipped; 0: not
    windowed: tuple[bool, ...] = (True, False)
    roped: tuple[bool, ...] = (True,)
    rotary_dim: int = 0  # channels of a head that turn, the first ones; 0: all
    local_theta: float = 0.0  # rope_theta of windowed layers, without scaling; 0: as the others
    activation: Activation = "silu"  # of the gate
    norm_plus_one: bool = False  # norms multiply by 1 + weight
    norms_after: bool = False  # attention and feed-forward net are normed before they are added
    embed_scale: bool = False  # embeddings are multiplied by sqrt(hidden)
    query_scale: float = 0.0  # scores are divided by the root of it; 0: of head_dim
    score_cap: float = 0.0  # scores are cap tanh(score / cap); 0: not
    logit_cap: float = 0.0  # so are logits

    def __post_init__(self) -> None:
        check_sizes(self, "vocab", "hidden", "heads", "kv_heads", "head_dim", "ffn")
        check_sizes(self, "layers", most=MOST_STACKED)
        check_sizes(self, "experts", "top_k", least=0, most=MOST_STACKED)
        check_sizes(self, "window", least=0)
        check_numbers(self, "rope_theta", "norm_eps")
        check_numbers(self, "init_std", "switch_loss", "z_loss", "swiglu_limit", zero=True)
        check_numbers(self, "query_scale", "score_cap", "logit_cap", "local_theta", zero=True)
        for name in ("rope_theta", "local_theta"):
            theta = getattr(self, name)
            if 0 < theta < 1:
                raise InputError(f"{name} is {theta:g}; it must be at least 1")
        if self.heads % self.kv_heads:
            raise InputError(
                f"{self.heads} heads cannot share {self.kv_heads} key-value heads evenly; "
                "choose kv_heads that divides heads"
            )
        self._check_rope()
        for name in ("expert_bias", "selection_bias"):
            if getattr(self, name) and not self.experts:
                raise InputError(f"{name} is set but experts is 0; there is nothing to add it to")
        if self.norms_after and self.experts:
            raise InputError("norms_after is for dense models; set experts to 0")
        choices = (
            ("router", Router),
            ("qk_norm", QkNorm),
            ("activation", Activation),
        )
        for name, kind in choices:
            allowed = get_args(kind)
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected one of {allowed}")
        if not 0 <= self.top_k <= self.experts or (self.experts > 0) != (self.top_k > 0):
            raise InputError(
                f"top_k is {self.top_k} of {self.experts} experts; expected 1 to experts, or both 0"
            )

    def _check_rope(self) -> None:
        if self.head_dim % 2:
            raise InputError(f"head_dim is {self.head_dim}; rotary positions need an even number")
        check_sizes(self, "rotary_dim", least=0, most=self.head_dim)
        if self.rotary_dim % 2:
            raise InputError(f"rotary_dim is {self.rotary_dim}; it must be an even number")
        scaling, width = self.rope_scaling, self.rotary_dim or self.head_dim
        yarn = isinstance(scaling, YarnScaling)
        if yarn and (self.rope_theta < 2 or width < 4):
            raise InputError(
                f"rope_theta is {self.rope_theta:g} and head_dim {width}; YaRN needs at "
                "least 2 and 4"
            )
        if isinstance(scaling, DynamicScaling) and width < 4:
            raise InputError(f"head_dim is {width}; dynamic rope scaling needs at least 4")
        if isinstance(scaling, LongRopeScaling):
            for name in ("short", "long"):
                factors = getattr(scaling, name)
                if len(factors) != width // 2:
                    raise InputError(
                        f"rope has {len(factors)} {name} factors; expected {width // 2}, one for "
                        "each pair of channels"
                    )
        for name in ("windowed", "roped"):
            flags = getattr(self, name)
            if not flags or not all(type(flag) is bool for flag in flags):
                raise InputError(f"{name} is {brief(flags)}; expected true or false for each layer")

    @property
    def windows(self) -> tuple[int, ...]:
        """How many tokens a position of each layer sees; 0: all."""
        flags = self.windowed
        return tuple(self.window * flags[i % len(flags)] for i in range(self.layers))

    @property
    def ropes(self) -> tuple[Rope | None, ...]:
        """How the heads of each layer turn; None: not at all."""
        width = self.rotary_dim or self.head_dim
        whole = Rope(width, self.rope_theta, self.rope_scaling)
        local = Rope(width, self.local_theta) if self.local_theta else whole
        turns = lambda i: self.roped[i % len(self.roped)]
        return tuple(
            (local if window else whole) if turns(i) else None
            for i, window in enumerate(self.windows)
        )

    @property
    def parameters(self) -> int:
        """Numbers in the parameter tree, exactly."""
        return size(shapes(self))

    @property
    def active_parameters(self) -> int:
        """Numbers that one token meets: of every expert layer `top_k` experts."""
        if not self.experts:
            return self.parameters
        experts = size(shapes(self)["layers"]["mlp"]["experts"])
        return self.parameters - experts // self.experts * (self.experts - self.top_k)


def llama(hidden: int, ffn: int, heads: int, layers: int, **rest: Any) -> DecoderConfig:
    """A Llama without shared key-value heads; `rest` are other fields."""
    shape = {"vocab": 32000, "kv_heads": heads, "head_dim": hidden // heads}
    fields: Fields = shape | rest
    return DecoderConfig(hidden=hidden, ffn=ffn, heads=heads, layers=layers, **fields)


_BYTES: Fields = {"vocab": 256, "init_std": 0.05}
_LLAMA3: Fields = {
    "vocab": 128256,
    "kv_heads": 8,
    "rope_theta": 500000.0,
    "norm_eps": 1e-5,
}
_LONG = Llama3Scaling(factor=8.0)
_GPT_OSS: Fields = {
    "vocab": 201088,
    "kv_heads": 8,
    "head_dim": 64,
    "rope_theta": 150000.0,
    "rope_scaling": YarnScaling(factor=32.0, truncate=False),
    "norm_eps": 1e-5,
    "qkv_bias": True,
    "o_bias": True,
    "expert_bias": True,
    "sinks": True,
    "window": 128,
    "swiglu_limit": 7.0,
    "top_k": 4,
}
_QWEN2: Fields = {"vocab": 151936, "rope_theta": 1e6, "qkv_bias": True}
_QWEN3: Fields = {"vocab": 151936, "rope_theta": 1e6, "qk_norm": "head", "head_dim": 128}

CONFIGS: dict[str, DecoderConfig] = {
    # Bytes in, bytes out: for tests, and for experiments on a CPU.
    "llama-tiny": llama(32, 64, 2, 2, **_BYTES),
    "moe-tiny": llama(32, 32, 2, 2, experts=4, top_k=2, selection_bias=True, **_BYTES),
    "llama-120k": llama(64, 192, 2, 2, tied=True, **_BYTES),
    "llama-1m": llama(128, 352, 4, 5, **_BYTES),
    "llama-4m": llama(256, 704, 8, 5, **_BYTES),
    "moe-1m": llama(128, 64, 4, 4, experts=8, top_k=2, selection_bias=True, **_BYTES),
    "moe-4m": llama(256, 64, 8, 4, experts=16, top_k=4, selection_bias=True, **_BYTES),
    # The sizes of the GaLore experiments, as in the configuration files of its repository. Its
    # paper's Table 5 exchanges heads and layers of the 1B model.
    "llama-60m": llama(512, 1376, 8, 8),
    "llama-130m": llama(768, 2048, 12, 12),
    "llama-350m": llama(1024, 2736, 16, 24),
    "llama-1b": llama(2048, 5461, 32, 24),
    "llama-7b": llama(4096, 11008, 32, 32),
    # Published models.
    "llama2-7b": llama(4096, 11008, 32, 32, norm_eps=1e-5),
    "llama3-8b": llama(4096, 14336, 32, 32, **_LLAMA3),
    "llama3.1-8b": llama(4096, 14336, 32, 32, rope_scaling=_LONG, **_LLAMA3),
    "llama3.1-70b": llama(8192, 28672, 64, 80, rope_scaling=_LONG, **_LLAMA3),
    "llama3.2-1b": llama(
        2048, 8192, 32, 16, rope_scaling=Llama3Scaling(factor=32.0), tied=True, **_LLAMA3
    ),
    "qwen2.5-0.5b": llama(896, 4864, 14, 24, kv_heads=2, tied=True, **_QWEN2),
    "qwen2.5-1.5b": llama(1536, 8960, 12, 28, kv_heads=2, tied=True, **_QWEN2),
    "qwen2.5-7b": llama(3584, 18944, 28, 28, kv_heads=4, **(_QWEN2 | {"vocab": 152064})),
    "qwen3-0.6b": llama(1024, 3072, 16, 28, kv_heads=8, tied=True, **_QWEN3),
    "qwen3-8b": llama(4096, 12288, 32, 36, kv_heads=8, **_QWEN3),
    "qwen3-30b-a3b": llama(2048, 768, 32, 48, kv_heads=4, experts=128, top_k=8, **_QWEN3),
    "qwen3-235b-a22b": llama(4096, 1536, 64, 94, kv_heads=4, experts=128, top_k=8, **_QWEN3),
    "olmoe-1b-7b": llama(
        2048,
        1024,
        16,
        16,
        vocab=50304,
        norm_eps=1e-5,
        qk_norm="whole",
        experts=64,
        top_k=8,
        renormalise=False,
    ),
    "gpt-oss-20b": llama(2880, 2880, 64, 24, experts=32, **_GPT_OSS),
    "gpt-oss-120b": llama(2880, 2880, 64, 36, experts=128, **_GPT_OSS),
}


C = TypeVar("C")


@overload
def named(name: str) -> DecoderConfig: ...
@overload
def named(name: str, configs: Mapping[str, C]) -> C: ...


def named(name: str, configs: Mapping[str, object] = CONFIGS) -> object:
    """The configuration of that name.

    Args:
        name: such as "llama-60m".
        configs: those to look among; by default the decoders.

    Raises:
        InputError: no such name; the message has the nearest, or all of them.
    """
    expect(isinstance(name, str), "the name of a model", name, "text such as 'llama-60m'")
    if name not in configs:
        hint = suggestion(name, configs, otherwise=f"known are {', '.join(configs)}")
        raise InputError(f"no model named {name!r}{hint}")
    return configs[name]
