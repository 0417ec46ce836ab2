"""Decoders in Hugging Face folders: `config.json`, read and written, and the names of tensors.

A `config.json` is read as the shape of a decoder, and what the decoder lacks is refused. The
inverse is found by trial: each family's way to write the shape is read back with `hf_config`, and
the one that gives the same shape is taken.
"""

import dataclasses
from collections.abc import Callable, Iterator

from springroll.atomic import JsonObject
from springroll.errors import InputError, brief
from springroll.models.config_checks import MOST_STACKED
from springroll.models.decoder import decoder
from springroll.models.decoder_config import DecoderConfig, shapes
from springroll.models.hf.config_values import Values
from springroll.models.hf.family import Family, Naming, Stored
from springroll.models.rope import Llama3Scaling, RopeScaling, YarnScaling

FAMILIES: dict[str, Callable[[Values], JsonObject]] = {
    "llama": lambda c: _biases(c),
    "qwen2": lambda c: {"qkv_bias": True},
    "qwen3": lambda c: {"qk_norm": "head", **_biases(c)},
    "qwen3_moe": lambda c: {
        "qk_norm": "head",
        **_biases(c),
        **_experts(c, c.whole("moe_intermediate_size")),
    },
    "olmoe": lambda c: {
        "qk_norm": "whole",
        **_biases(c),
        **_experts(c, c.whole("intermediate_size")),
    },
}


def hf_config(values: JsonObject, where: str = "config.json") -> DecoderConfig:
    """The configuration that the keys of a `config.json` describe, in its old and new spelling.

    Raises:
        InputError: another architecture, an unknown rope type, a sliding window; a key that is
            missing, of another type, or out of range.
    """
    family = values.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise InputError(f"{where}: model_type is {brief(family)}; known are {', '.join(FAMILIES)}")
    said = Values(values, where)
    _refuse_others(said, family)
    heads, hidden = said.whole("num_attention_heads"), said.whole("hidden_size")
    fields: JsonObject = {
        "vocab": said.whole("vocab_size"),
        "hidden": hidden,
        "layers": said.whole("num_hidden_layers", most=MOST_STACKED),
        "heads": heads,
        "kv_heads": said.whole("num_key_value_heads", heads),
        "head_dim": said.whole("head_dim", max(hidden // heads, 1)),
        "ffn": said.whole("intermediate_size"),
        "norm_eps": said.number("rms_norm_eps", 1e-6),
        "tied": said.flag("tie_word_embeddings"),
        "init_std": said.number("initializer_range", 0.02),
    }
    try:
        return DecoderConfig(**(fields | _rope(said) | FAMILIES[family](said)))
    except InputError as error:
        line = str(error)
        raise InputError(line if line.startswith(where) else f"{where}: {line}") from None


def _refuse_others(said: Values, family: str) -> None:
    """Raise InputError for settings of a family that this decoder has not."""
    kinds = said.items("layer_types")
    windows = any(kind in kinds for kind in ("sliding_attention", "chunked_attention"))
    window = family == "llama" and said.get("sliding_window") is not None
    if said.get("use_sliding_window") or windows or window:
        raise InputError(f"{said.where}: attention within a sliding window is not supported")
    in_turns = said.get("mlp_only_layers") or said.get("decoder_sparse_step") not in (None, 1)
    if family == "qwen3_moe" and in_turns:
        raise InputError(
            f"{said.where}: layers with and without experts in turns are not supported"
        )
    for name, only in (("mlp_bias", False), ("clip_qkv", None), ("hidden_act", "silu")):
        given = said.get(name)
        if given and given != only:
            raise InputError(f"{said.where}: {name} {brief(given)} is not supported, only {only}")


def _biases(said: Values) -> JsonObject:
    """`attention_bias` is of all four matrices (Qwen2 has its own rule)."""
    return dict.fromkeys(("qkv_bias", "o_bias"), said.flag("attention_bias"))


def _experts(said: Values, ffn: int) -> JsonObject:
    # transformers 5 writes the second for Qwen3-MoE, though all its folders have the first.
    name = "num_local_experts" if said.get("num_experts") is None else "num_experts"
    return {
        "experts": said.whole(name, most=MOST_STACKED),
        "top_k": said.whole("num_experts_per_tok"),
        "renormalise": said.flag("norm_topk_prob"),
        "ffn": ffn,
    }


def _rope(said: Values) -> JsonObject:
    """Base and scaling: `rope_parameters`, or before transformers 5 `rope_theta` and
    `rope_scaling`."""
    rope = said.section("rope_parameters" if said.get("rope_parameters") else "rope_scaling")
    theta = rope.number("rope_theta", said.number("rope_theta", 10000.0))
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if rope.number("partial_rotary_factor", said.number("partial_rotary_factor", 1.0)) != 1.0:
        raise InputError(f"{said.where}: partial_rotary_factor, other than 1, is not supported")
    scaling: RopeScaling | None
    if kind == "default":
        scaling = None
    elif kind == "llama3":
        scaling = Llama3Scaling(
            factor=rope.number("factor"),
            low_freq_factor=rope.number("low_freq_factor"),
            high_freq_factor=rope.number("high_freq_factor"),
            original_length=_original_length(said, rope),
        )
    elif kind == "yarn" and not (rope.get("mscale") or rope.get("attention_factor")):
        scaling = YarnScaling(
            factor=rope.number("factor"),
            beta_fast=rope.number("beta_fast", 32.0),
            beta_slow=rope.number("beta_slow", 1.0),
            original_length=_original_length(said, rope),
            truncate=rope.flag("truncate", True),
        )
    else:
        raise InputError(
            f"{said.where}: rope type {brief(kind)}, with these settings, is not supported"
        )
    return {"rope_theta": float(theta), "rope_scaling": scaling}


def _original_length(said: Values, rope: Values) -> int:
    name, most = "original_max_position_embeddings", 2**40
    if rope.get(name) is None:
        return said.whole("max_position_embeddings", most=most)
    return rope.whole(name, most=most)


ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "olmoe": "OlmoeForCausalLM",
}
_OF_TRAINING = {"switch_loss": 0.0, "z_loss": 0.0, "init_std": 0.0}  # no part of the model


def config_json(
    config: DecoderConfig, dtype: str = "bfloat16", like: JsonObject | None = None
) -> JsonObject:
    """The `config.json` of a model.

    `max_position_embeddings`, which no computation reads, is what the rope scaling was made for, or
    4096.

    Args:
        dtype: of the tensors, "bfloat16" or "float32".
        like: the `config.json` of a model of the same shape, to be taken over.

    Raises:
        InputError: `like` is another model; or no family that `hf_config` knows is this model, and
            what the nearest lacks.
    """
    if like is not None:
        others = _differences(config, hf_config(like))
        if others:
            raise InputError(
                f"the folder to write is another model than `like`: {others[0]} differs"
            )
        return {k: v for k, v in like.items() if k != "dtype"} | {"torch_dtype": dtype}
    lacks: dict[str, list[str]] = {}
    for family in ARCHITECTURES:
        if (family in ("qwen3_moe", "olmoe")) != (config.experts > 0):
            continue
        values = _values(config, family, dtype)
        lacks[family] = _differences(config, hf_config(values))
        if not lacks[family]:
            return values
    nearest = min(lacks, key=lambda family: len(lacks[family]))
    wanted = ", ".join(f"{name}={getattr(config, name)!r}" for name in lacks[nearest])
    raise InputError(
        f"Hugging Face's format has no name for this model: {nearest}, the nearest, has no {wanted}"
    )


def _differences(ours: DecoderConfig, theirs: DecoderConfig) -> list[str]:
    ours, theirs = (dataclasses.replace(c, **_OF_TRAINING) for c in (ours, theirs))
    names = (field.name for field in dataclasses.fields(ours))
    return [name for name in names if getattr(ours, name) != getattr(theirs, name)]


def _values(c: DecoderConfig, family: str, dtype: str) -> JsonObject:
    values: JsonObject = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "vocab_size": c.vocab,
        "hidden_size": c.hidden,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "intermediate_size": c.ffn,
        "hidden_act": "silu",
        "rms_norm_eps": c.norm_eps,
        "tie_word_embeddings": c.tied,
        "initializer_range": c.init_std,
        "attention_bias": c.o_bias,
        "max_position_embeddings": _context(c),
        "rope_theta": c.rope_theta,
        "torch_dtype": dtype,
    }
    if c.rope_scaling is not None:
        values["rope_scaling"] = _scaling(c.rope_scaling)
    if c.experts:
        values |= {
            "num_experts": c.experts,
            "num_experts_per_tok": c.top_k,
            "norm_topk_prob": c.renormalise,
            "router_aux_loss_coef": c.switch_loss,
        }
    if family == "qwen3_moe":
        values |= {"moe_intermediate_size": c.ffn, "decoder_sparse_step": 1, "mlp_only_layers": []}
    return values


def _context(c: DecoderConfig) -> int:
    scaling = c.rope_scaling
    return 4096 if scaling is None else int(scaling.factor * scaling.original_length)


def _scaling(scaling: Llama3Scaling | YarnScaling) -> JsonObject:
    shared = {"factor": scaling.factor, "original_max_position_embeddings": scaling.original_length}
    if isinstance(scaling, Llama3Scaling):
        return shared | {
            "rope_type": "llama3",
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
        }
    return shared | {
        "rope_type": "yarn",
        "beta_fast": scaling.beta_fast,
        "beta_slow": scaling.beta_slow,
        "truncate": scaling.truncate,
    }


def checkpoint_names(
    path: str, shape: tuple[int, ...], layer: int | None = None
) -> Iterator[tuple[tuple[int, ...], str]]:
    """(index into the stacks, name in the checkpoint) of every tensor of a leaf, or of one layer's.

    `shape` is that of the whole leaf.
    """
    *inside, leaf = path.split("/")
    stem, kind = leaf, ".weight"
    if leaf == "e_score_correction_bias":
        stem, kind = f"gate.{leaf}", ""
    elif leaf.endswith("_bias"):
        stem, kind = leaf.removesuffix("bias") + "proj", ".bias"
    if not inside:
        yield (), stem + kind if leaf == "lm_head" else f"model.{stem}{kind}"
        return
    layers = range(shape[0]) if layer is None else (layer,)
    experts = range(shape[1]) if "experts" in inside else None
    # Not `itertools.product`, which makes all of a range at once: sizes are as a file says.
    for index in ((i, *e) for i in layers for e in ([()] if experts is None else zip(experts))):
        parts = ["model.layers", str(index[0]), *inside[1:], *map(str, index[1:])]
        yield index, ".".join([*parts, stem]) + kind


def _stored(
    config: DecoderConfig, path: str, shape: tuple[int, ...], layer: int | None
) -> Iterator[Stored]:
    for index, name in checkpoint_names(path, shape, layer):
        yield Stored(index, name, shape[len(index) :])


DECODER = Family(
    config=DecoderConfig,
    model=decoder,
    shapes=shapes,
    naming=Naming(
        _stored,
        unread=("rotary_emb.inv_freq",),  # a table of old checkpoints
        copies={"lm_head.weight": "model.embed_tokens.weight"},  # of tied models
    ),
    read=hf_config,
    write=config_json,
)
