"""RWKV-7 in checkpoints: the names of BlinkDL's own files, and those of flash-linear-attention's
Hugging Face folders.

The shape of an RWKV-7 as the `config.json` of flash-linear-attention's folders, and back.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from springroll.atomic import JsonObject
from springroll.errors import InputError, brief
from springroll.models.config_checks import MOST_STACKED
from springroll.models.hf.config_values import Values
from springroll.models.hf.family import Family, Naming, Stored, Tensor, taken_over
from springroll.models.rwkv7.config import RWKV7Config, shapes
from springroll.models.rwkv7.model import RWKV7

# What the format can say and this model is not; other values are refused.
_FIXED: JsonObject = {
    "attn": None,  # layers of attention in between
    "norm_first": True,
    "norm_bias": True,
    "hidden_act": "sqrelu",
    "tie_word_embeddings": False,
}


def fla_config(values: JsonObject, where: str = "config.json") -> RWKV7Config:
    """The configuration that the keys of a `config.json` describe.

    Raises:
        InputError: a setting that this model has not, or a missing key.
    """
    for name, expected in _FIXED.items():
        given = values.get(name, expected)
        if given != expected:
            raise InputError(f"{where}: {name} {brief(given)} is not supported, only {expected}")
    said = Values(values, where)
    hidden = said.whole("hidden_size")
    layers = said.whole("num_hidden_layers", most=MOST_STACKED)
    if any(width != hidden for width in said.items("value_dim")):
        raise InputError(f"{where}: values of another width than the model are not supported")
    of_heads = 64 if not said.get("num_heads") else max(hidden // said.whole("num_heads"), 1)
    head_dim = said.whole("head_dim", of_heads)
    eps = said.number("norm_eps", 1e-5)
    fields = {
        "vocab": said.whole("vocab_size"),
        "ffn": said.whole("intermediate_size", _ffn(hidden, said.number("hidden_ratio", 4.0))),
        "decay_rank": said.whole("decay_low_rank_dim"),
        "a_rank": said.whole("a_low_rank_dim"),
        "v_rank": said.whole("v_low_rank_dim"),
        "gate_rank": said.whole("gate_low_rank_dim"),
    }
    return _built(
        where,
        **fields,
        hidden=hidden,
        layers=layers,
        head_dim=head_dim,
        norm_eps=eps,
        group_eps=head_dim * eps,
    )


def _built(where: str, **fields: Any) -> RWKV7Config:
    """The configuration of these fields; its InputError says where they stand."""
    try:
        return RWKV7Config(**fields)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def fla_json(
    config: RWKV7Config, dtype: str = "bfloat16", like: JsonObject | None = None
) -> JsonObject:
    """The `config.json` of a model, with which transformers and flash-linear-attention load it.

    Args:
        dtype: of the tensors, "bfloat16" or "float32".
        like: the `config.json` of a model of the same shape, to be taken over.

    Raises:
        InputError: `like` is another model; or the epsilon of the heads' norm is not that of the
            token norms times the width of a head, which is all the format can say.
    """
    if like is not None:
        other = fla_config(like)
        names = [field.name for field in dataclasses.fields(config)]
        differing = [x for x in names if not _same(getattr(config, x), getattr(other, x))]
        return taken_over(like, differing, dtype)
    if not _same(config.group_eps, config.head_dim * config.norm_eps):
        raise InputError(
            "Hugging Face's format has no name for this model: it takes group_eps to be head_dim "
            f"* norm_eps = {config.head_dim * config.norm_eps:g}, not {config.group_eps:g}"
        )
    return {
        "architectures": ["RWKV7ForCausalLM"],
        "model_type": "rwkv7",
        "vocab_size": config.vocab,
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "head_dim": config.head_dim,
        "num_heads": config.heads,
        "intermediate_size": config.ffn,
        "hidden_ratio": config.ffn / config.hidden,
        "decay_low_rank_dim": config.decay_rank,
        "a_low_rank_dim": config.a_rank,
        "v_low_rank_dim": config.v_rank,
        "gate_low_rank_dim": config.gate_rank,
        "norm_eps": config.norm_eps,
        "value_dim": [config.hidden] * config.layers,
        "attn_mode": "chunk",
        "fuse_norm": False,
        "max_position_embeddings": 4096,  # read by no computation
        "bos_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": dtype,
        **_FIXED,
    }


def _ffn(hidden: int, ratio: float) -> int:
    """The format's width where none is said: a multiple of 32."""
    return -(-int(hidden * ratio) // 32) * 32


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-6)


_SMALL_NETS = "wavg"  # decay, rate, share of the first value, gate

FLA = {
    "embed_tokens": "model.embeddings.weight",
    "embed_norm": "model.layers.0.pre_norm.weight",
    "embed_norm_bias": "model.layers.0.pre_norm.bias",
    "norm": "model.norm.weight",
    "norm_bias": "model.norm.bias",
    "lm_head": "lm_head.weight",
    "layers/attn_norm": "attn_norm.weight",
    "layers/attn_norm_bias": "attn_norm.bias",
    "layers/ffn_norm": "ffn_norm.weight",
    "layers/ffn_norm_bias": "ffn_norm.bias",
    "layers/attn/g_norm": "attn.g_norm.weight",
    "layers/attn/g_norm_bias": "attn.g_norm.bias",
    **{f"layers/attn/x_{x}": f"attn.x_{x}" for x in "rwkvag"},
    **{f"layers/attn/{x}": f"attn.{x}" for x in ("k_k", "k_a", "r_k")},
    **{f"layers/attn/{x}_proj": f"attn.{x}_proj.weight" for x in "rkvo"},
    **{f"layers/attn/{x}_down": f"attn.{x}_lora.lora.0.weight" for x in _SMALL_NETS},
    **{f"layers/attn/{x}_up": f"attn.{x}_lora.lora.2.weight" for x in _SMALL_NETS},
    **{f"layers/attn/{x}_bias": f"attn.{x}_lora.lora.2.bias" for x in "wav"},
    "layers/ffn/x_k": "ffn.x_k",
    "layers/ffn/key": "ffn.key.weight",
    "layers/ffn/value": "ffn.value.weight",
}
BLINKDL = {
    "embed_tokens": "emb.weight",
    "embed_norm": "blocks.0.ln0.weight",
    "embed_norm_bias": "blocks.0.ln0.bias",
    "norm": "ln_out.weight",
    "norm_bias": "ln_out.bias",
    "lm_head": "head.weight",
    "layers/attn_norm": "ln1.weight",
    "layers/attn_norm_bias": "ln1.bias",
    "layers/ffn_norm": "ln2.weight",
    "layers/ffn_norm_bias": "ln2.bias",
    "layers/attn/g_norm": "att.ln_x.weight",
    "layers/attn/g_norm_bias": "att.ln_x.bias",
    **{f"layers/attn/x_{x}": f"att.x_{x}" for x in "rwkvag"},
    **{f"layers/attn/{x}": f"att.{x}" for x in ("k_k", "k_a", "r_k")},
    "layers/attn/r_proj": "att.receptance.weight",
    "layers/attn/k_proj": "att.key.weight",
    "layers/attn/v_proj": "att.value.weight",
    "layers/attn/o_proj": "att.output.weight",
    **{f"layers/attn/{x}_down": f"att.{x}1" for x in _SMALL_NETS},
    **{f"layers/attn/{x}_up": f"att.{x}2" for x in _SMALL_NETS},
    **{f"layers/attn/{x}_bias": f"att.{x}0" for x in "wav"},
    "layers/ffn/x_k": "ffn.x_k",
    "layers/ffn/key": "ffn.key.weight",
    "layers/ffn/value": "ffn.value.weight",
}
_OF_LATER_LAYERS = ("v_down", "v_up", "v_bias")  # layer 0 makes the value that they share


def _stored(
    names: Mapping[str, str],
    block: str,
    as_stored: Callable[[RWKV7Config, str, tuple[int, ...]], tuple[tuple[int, ...], bool]],
) -> Callable[[RWKV7Config, str, tuple[int, ...], int | None], Iterator[Stored]]:
    def stored(
        config: RWKV7Config, path: str, shape: tuple[int, ...], layer: int | None
    ) -> Iterator[Stored]:
        if not path.startswith("layers/"):
            yield Stored((), names[path], shape)
            return
        layers = range(shape[0]) if layer is None else (layer,)
        for i in layers:
            if i or not path.endswith(_OF_LATER_LAYERS):
                form, transposed = as_stored(config, path.removeprefix("layers/"), shape[1:])
                yield Stored((i,), f"{block}.{i}.{names[path]}", form, transposed)

    return stored


def _of_fla(config: RWKV7Config, name: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], bool]:
    if name == "attn/r_k":
        return (config.heads, config.head_dim), False
    return ((1, 1, *shape) if name.startswith("attn/x_") else shape), False


def _of_blinkdl(
    config: RWKV7Config, name: str, shape: tuple[int, ...]
) -> tuple[tuple[int, ...], bool]:
    if name.endswith(("_down", "_up")):
        return shape[::-1], True
    if name == "attn/r_k":
        return (config.heads, config.head_dim), False
    lone = ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "/k_k", "/k_a", "w_bias", "a_bias", "v_bias")
    return ((1, 1, *shape) if name.endswith(lone) else shape), False


blinkdl = Naming(
    _stored(BLINKDL, "blocks", _of_blinkdl),
    unread=("blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2"),
)
RWKV7_FAMILY = Family(
    config=RWKV7Config,
    model=RWKV7,
    shapes=shapes,
    naming=Naming(
        _stored(FLA, "model.layers", _of_fla),
        unread=tuple(
            f"model.layers.0.attn.v_lora.lora.{part}" for part in ("0.weight", "2.weight", "2.bias")
        ),
    ),
    read=fla_config,
    write=fla_json,
)


def is_blinkdl(names: Mapping[str, object]) -> bool:
    """Whether these are the names of an RWKV-7 as its authors store it."""
    return {"emb.weight", "blocks.0.att.r_k", "blocks.0.att.w1"} <= set(names)


def blinkdl_config(tensors: Mapping[str, Tensor], where: str) -> RWKV7Config:
    """The shape of the model, which these checkpoints do not say, from their tensors.

    Raises:
        InputError: a tensor without which it cannot be told is missing or misshapen.
    """
    if not is_blinkdl(tensors):
        raise InputError(
            f"{where} holds no RWKV-7: expected emb.weight, blocks.0.att.r_k and others"
        )
    try:
        layers = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
        last = f"blocks.{layers - 1}.att"
        vocab, hidden = tensors["emb.weight"].shape
        ranks = {
            field: tensors[name].shape[1]
            for field, name in (
                ("decay_rank", f"{last}.w1"),
                ("a_rank", f"{last}.a1"),
                ("v_rank", f"{last}.v1"),
                ("gate_rank", f"{last}.g1"),
            )
            if name in tensors or field != "v_rank"
        }
        head_dim, ffn = (
            tensors["blocks.0.att.r_k"].shape[1],
            tensors["blocks.0.ffn.key.weight"].shape[0],
        )
    except KeyError as missing:
        raise InputError(f"{where}: the tensor {missing} is missing") from None
    except (ValueError, IndexError):
        raise InputError(
            f"{where}: a tensor of an RWKV-7 has another name or number of axes"
        ) from None
    shape = {"vocab": vocab, "hidden": hidden, "layers": layers, "ffn": ffn, "head_dim": head_dim}
    return _built(where, **shape, **ranks)
