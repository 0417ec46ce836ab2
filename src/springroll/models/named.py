"""Configurations by name, of every kind of model."""

from __future__ import annotations

from springroll.errors import InputError, suggestion
from springroll.models.decoder_config import CONFIGS, DecoderConfig
from springroll.models.rwkv7.config import RWKV7_CONFIGS, RWKV7Config


def named_model(name: str) -> DecoderConfig | RWKV7Config:
    """The configuration of that name.

    Raises:
        InputError: no such name; the nearest, or all of them, are in the message.
    """
    known: dict[str, DecoderConfig | RWKV7Config] = {**CONFIGS, **RWKV7_CONFIGS}
    if name not in known:
        hint = suggestion(name, known, otherwise=f"known are {', '.join(known)}")
        raise InputError(f"no model named {name!r}{hint}")
    return known[name]
