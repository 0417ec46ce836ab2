"""Rotary positions in a `config.json`: read and written, in the old and the new spelling."""

from springroll.atomic import JsonObject
from springroll.errors import InputError, brief
from springroll.models.decoder_config import DecoderConfig
from springroll.models.hf.config_values import Values
from springroll.models.rope import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeScaling,
    YarnScaling,
    yarn_gain,
)

_MOST_LENGTH = 2**40
_ORIGINAL, _LONGEST = "original_max_position_embeddings", "max_position_embeddings"


def rope_fields(said: Values) -> JsonObject:
    """Base, scaling and width: `rope_parameters`, or before transformers 5 `rope_theta` and
    `rope_scaling`."""
    rope = said.section("rope_parameters" if said.get("rope_parameters") else "rope_scaling")
    if any(isinstance(value, dict) for value in rope.values.values()):
        raise InputError(
            f"{rope.where}: other values for every kind of layer are not supported in "
            f"{said.get('model_type')}"
        )
    return {
        "rope_theta": float(rope.number("rope_theta", said.number("rope_theta", 10000.0))),
        "rope_scaling": _scaling(said, rope),
        "rotary_dim": _rotary_dim(said, rope),
    }


def split_rope_fields(said: Values) -> JsonObject:
    """Those of Gemma 3, whose layers with a window have a base of their own."""
    rope = said.section("rope_parameters")
    full, local = rope.section("full_attention"), rope.section("sliding_attention")
    flat = said.section("rope_scaling") if not full.values else full
    if _kind(local) != "default":
        raise InputError(f"{local.where}: rope type {brief(_kind(local))} is not supported there")
    return {
        "rope_theta": float(full.number("rope_theta", said.number("rope_theta", 1e6))),
        "local_theta": float(local.number("rope_theta", said.number("rope_local_base_freq", 1e4))),
        "rope_scaling": _scaling(said, flat),
        "rotary_dim": _rotary_dim(said, full),
    }


def _kind(rope: Values) -> object:
    return rope.get("rope_type") or rope.get("type") or "default"


def _rotary_dim(said: Values, rope: Values) -> int:
    share = rope.number("partial_rotary_factor", said.number("partial_rotary_factor", 1.0))
    if share == 1:
        return 0
    if said.get("model_type") != "phi3" or share > 1:
        raise InputError(
            f"{said.where}: partial_rotary_factor {brief(share)} is not supported in "
            f"{said.get('model_type')}"
        )
    width = said.whole("head_dim", said.whole("hidden_size") // said.whole("num_attention_heads"))
    return max(2, int(width * share))


def _scaling(said: Values, rope: Values) -> RopeScaling | None:
    kind = _kind(rope)
    if said.get("model_type") == "phi3" and kind in ("su", "yarn"):
        kind = "longrope"  # older names of it
    if kind == "default":
        return None
    if not isinstance(kind, str) or kind not in _SCALINGS:
        raise InputError(
            f"{said.where}: rope type {brief(kind)} is not supported; known are default, "
            f"{', '.join(_SCALINGS)}"
        )
    return _SCALINGS[kind](said, rope)


def _llama3(said: Values, rope: Values) -> RopeScaling:
    return Llama3Scaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_length=_original_length(said, rope),
    )


def _yarn(said: Values, rope: Values) -> RopeScaling:
    factor = _factor(said, rope)
    gain = rope.number_or_zero("attention_factor")
    mscale, of_all = rope.number_or_zero("mscale"), rope.number_or_zero("mscale_all_dim")
    if not gain and mscale and of_all:
        gain = yarn_gain(factor, mscale) / yarn_gain(factor, of_all)
    return YarnScaling(
        factor=factor,
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        original_length=_original_length(said, rope),
        truncate=rope.flag("truncate", True),
        attention_factor=gain,
    )


def _linear(said: Values, rope: Values) -> RopeScaling:
    return LinearScaling(factor=rope.number("factor"))


def _dynamic(said: Values, rope: Values) -> RopeScaling:
    if rope.get("alpha"):
        raise InputError(f"{rope.where}: alpha is not supported, only factor")
    length = said.whole(_LONGEST, most=_MOST_LENGTH)
    return DynamicScaling(factor=rope.number("factor"), original_length=length)


def _longrope(said: Values, rope: Values) -> RopeScaling:
    return LongRopeScaling(
        short=_factors(rope, "short_factor"),
        long=_factors(rope, "long_factor"),
        factor=_factor(said, rope),
        original_length=_original_length(said, rope),
        attention_factor=rope.number_or_zero("attention_factor"),
    )


_SCALINGS = {
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}


def _factors(rope: Values, name: str) -> tuple[float, ...]:
    values = rope.items(name)
    return tuple(float(Values({name: x}, rope.where).number(name)) for x in values)


def _factor(said: Values, rope: Values) -> float:
    """`factor`, or by how much the context is longer than the original one."""
    if rope.get("factor") is not None:
        return float(rope.number("factor"))
    return said.whole(_LONGEST, most=_MOST_LENGTH) / _original_length(said, rope)


def _original_length(said: Values, rope: Values) -> int:
    for place in (said, rope):
        if place.get(_ORIGINAL) is not None:
            return place.whole(_ORIGINAL, most=_MOST_LENGTH)
    return said.whole(_LONGEST, most=_MOST_LENGTH)


def rope_json(c: DecoderConfig) -> JsonObject:
    """The keys of a `config.json` that say the same, in the old spelling, which all versions read.

    `max_position_embeddings` is what the rope scaling was made for, or 4096.
    """
    values: JsonObject = {_LONGEST: 4096, "rope_theta": c.rope_theta}
    if c.rotary_dim:
        values["partial_rotary_factor"] = c.rotary_dim / c.head_dim
    if c.local_theta:
        values["rope_local_base_freq"] = c.local_theta
    match c.rope_scaling:
        case None:
            return values
        case LinearScaling() as s:
            scaling: JsonObject = {"rope_type": "linear", "factor": s.factor}
            longest = 4096 * s.factor
        case DynamicScaling() as s:
            scaling = {"rope_type": "dynamic", "factor": s.factor}
            longest = s.original_length
        case LongRopeScaling() as s:
            scaling = {"type": "longrope", "rope_type": "longrope"}
            scaling |= {"short_factor": list(s.short), "long_factor": list(s.long)}
            longest = round(s.factor * s.original_length)
            if longest / s.original_length != s.factor:
                scaling["factor"] = s.factor
            values[_ORIGINAL] = s.original_length
        case Llama3Scaling() | YarnScaling() as s:
            scaling = {"factor": s.factor, _ORIGINAL: s.original_length}
            longest = s.factor * s.original_length
            scaling |= _blend_json(s)
    gain = getattr(c.rope_scaling, "attention_factor", 0.0)
    scaling |= {"attention_factor": gain} if gain else {}
    return values | {_LONGEST: int(longest), "rope_scaling": scaling}


def _blend_json(scaling: Llama3Scaling | YarnScaling) -> JsonObject:
    if isinstance(scaling, Llama3Scaling):
        return {
            "rope_type": "llama3",
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
        }
    return {
        "rope_type": "yarn",
        "beta_fast": scaling.beta_fast,
        "beta_slow": scaling.beta_slow,
        "truncate": scaling.truncate,
    }
