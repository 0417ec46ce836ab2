"""The shape of a model that somebody asks about: by name, from its files, or from the hub."""

import os
from pathlib import Path

from springroll.errors import InputError, as_path, expect
from springroll.gguf.from_index import PREFIX
from springroll.hub import hf_config, hf_folder, no_gguf
from springroll.models.decoder import decoder
from springroll.models.decoder_config import DecoderConfig, named
from springroll.models.expert_stages import expert_stages
from springroll.models.hf.family import Config
from springroll.models.hf.files import read_config


def config_at(model: str | Path) -> tuple[Config, Path | None]:
    """(the shape of a model, where its config.json is).

    Args:
        model: a shape by name (`models.decoder_config.CONFIGS`), a folder, a config.json, a GGUF
            file, a name on the hub, of which only the config.json is downloaded, or on the package
            index.

    Raises:
        InputError: there is none, or the hub cannot be reached.
    """
    path = Path(os.path.expanduser(as_path(model, "model")))
    if os.path.exists(path):
        return read_config(path), path
    if str(model).startswith(PREFIX):
        folder = hf_folder(model)
        return read_config(folder), folder
    if path.suffix == ".gguf":
        raise no_gguf(path)
    if "/" in str(model):
        folder = hf_config(str(model))
        return read_config(folder), folder
    return named(str(model)), None


def named_model(
    model: str | Path | DecoderConfig, experts_per_bundle: int | None = None
) -> tuple[str, DecoderConfig]:
    """A name for people, and the shape.

    Raises:
        InputError: no such name, a folder without a model, or one whose experts cannot pass so.
    """
    name, config = _decoder_config(model)
    if experts_per_bundle is not None:
        expert_stages(decoder(config), experts_per_bundle)
    return name, config


def _decoder_config(model: str | Path | DecoderConfig) -> tuple[str, DecoderConfig]:
    if isinstance(model, DecoderConfig):
        return f"a decoder of {model.parameters / 1e9:.3g}B parameters", model
    named_or_path = isinstance(model, str | os.PathLike)
    expect(named_or_path, "model", model, "a name such as 'llama-7b', a folder or a DecoderConfig")
    config, _ = config_at(model)
    if not isinstance(config, DecoderConfig):
        raise InputError(f"{model} holds an RWKV-7; only decoders can be planned")
    return str(model), config
