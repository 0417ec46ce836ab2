"""The files of a model: which there are, what model they hold, and views of all its tensors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from springroll import atomic
from springroll.atomic import JsonObject
from springroll.errors import InputError
from springroll.models.decoder_config import shape_leaves
from springroll.models.hf.decoder import DECODER
from springroll.models.hf.decoder import FAMILIES as DECODERS
from springroll.models.hf.family import Config, Family, Naming, Stored
from springroll.models.hf.pth import mapped_pth
from springroll.models.hf.rwkv7 import RWKV7_FAMILY, blinkdl, blinkdl_config
from springroll.safetensors_map import mapped

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FAMILIES: dict[str, Family[Any]] = {**dict.fromkeys(DECODERS, DECODER), "rwkv7": RWKV7_FAMILY}
FLOATS = (jnp.bfloat16, np.float16, np.float32, np.float64)


@dataclass(frozen=True)
class Checkpoint:
    """An open model: what it is, and views of all its tensors in the mapped files."""

    config: Config
    tensors: Mapping[str, np.ndarray]
    naming: Naming[Any]


def family_of(config: Config) -> Family[Any]:
    """The family whose configurations are of that type."""
    return next(family for family in FAMILIES.values() if isinstance(config, family.config))


def is_hf_folder(path: str | Path) -> bool:
    """Whether `load_hf` would look for a model there: a folder whose `config.json` has a
    `model_type`, or an RWKV-7 of its authors, a file or a folder with one."""
    return _lone_file(Path(path)) is not None or "model_type" in _config_values(Path(path))


def read_config(folder: str | Path) -> Config:
    """The shape of the model in a folder; no weights are read."""
    lone = _lone_file(Path(folder))
    if lone is not None:
        return blinkdl_config(_tensors_of(lone), str(lone))
    values, where = read_json(folder), Path(folder) / "config.json"
    kind = values.get("model_type")
    if kind not in FAMILIES:
        raise InputError(f"{where}: model_type is {kind!r}; known are {', '.join(FAMILIES)}")
    return FAMILIES[kind].read(values, str(where))


def read_json(folder: str | Path) -> JsonObject:
    """The config.json of a folder as it stands there."""
    return atomic.read_json(Path(folder) / "config.json")


def open_hf(folder: str | Path, config: Config | None = None) -> Checkpoint:
    """Open a folder; no weights are read, but all that can be wrong with them is found.

    Args:
        config: by default that of the folder's config.json, or of a lone file's tensors.

    Raises:
        InputError: a file is missing, truncated or damaged, a tensor is missing, has another shape
            than the config says, is quantized, or would not be read.
    """
    config = read_config(folder) if config is None else config
    lone = _lone_file(Path(folder))
    tensors = _tensors(Path(folder)) if lone is None else _tensors_of(lone)
    naming: Naming[Any] = family_of(config).naming if lone is None else blinkdl
    needed = set()
    for path, shape in leaves_of(config):
        for stored in naming.stored(config, path, shape, None):
            _check(tensors, stored, path)
            needed.add(stored.name)
    unread = [n for n in tensors if n not in needed and not n.endswith(naming.unread)]
    if unread:
        raise InputError(
            f"{folder} holds {len(unread)} tensors that the model of its config.json has not, "
            f"{unread[0]} first; without them it would compute something else"
        )
    return Checkpoint(config, tensors, naming)


def leaves_of(config: Config) -> list[tuple[str, tuple[int, ...]]]:
    """(path, shape) of every leaf of the parameter tree, in the order of the tree."""
    return list(shape_leaves(family_of(config).shapes(config)).items())


def _check(tensors: Mapping[str, np.ndarray], stored: Stored, path: str) -> None:
    if stored.name not in tensors:
        raise InputError(f"the checkpoint has no tensor {stored.name} (for {path})")
    tensor = tensors[stored.name]
    if not stored.fits(tensor.shape):
        raise InputError(
            f"{stored.name} has the shape {list(tensor.shape)}; the model has {list(stored.shape)}"
        )
    if tensor.dtype not in FLOATS:
        raise InputError(
            f"{stored.name} is stored as {tensor.dtype}; expected bfloat16, float16 or float32: "
            "take the checkpoint that is not quantized"
        )


def _config_values(folder: Path) -> JsonObject:
    try:
        values = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _lone_file(path: Path) -> Path | None:
    """The file of weights that is a model by itself: given, or alone in a folder without config."""
    kinds = (".pth", ".safetensors")
    if path.is_file():
        return path if path.suffix in kinds else None
    if not path.is_dir() or (path / "config.json").exists():
        return None
    models = [file for file in sorted(path.iterdir()) if file.suffix in kinds]
    return models[0] if len(models) == 1 and models[0].name != SINGLE else None


def _tensors_of(file: Path) -> dict[str, np.ndarray]:
    return mapped_pth(file) if file.suffix == ".pth" else mapped(file)


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    """Tensor name -> view of the mapped file that holds it."""
    index = folder / INDEX
    if index.exists():
        try:
            where: dict[str, str] = json.loads(index.read_text())["weight_map"]
            names = sorted(set(where.values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"cannot read {index}: expected JSON with a weight_map") from None
        lost = [name for name in names if not (folder / name).is_file()]
        if lost:
            raise InputError(
                f"{folder} lacks {len(lost)} of its {len(names)} shards, {lost[0]} first; "
                "download it again"
            )
    elif (folder / SINGLE).exists():
        names = [SINGLE]
    else:
        raise InputError(f"{folder} holds neither {SINGLE} nor {INDEX}")
    return {name: view for file in names for name, view in mapped(folder / file).items()}
