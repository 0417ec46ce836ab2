"""The files of a model: which there are, what model they hold, and views of all its tensors."""

import functools
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import jax.numpy as jnp
import numpy as np

from springroll import atomic
from springroll.atomic import JsonObject
from springroll.bounded import opened
from springroll.errors import InputError, brief
from springroll.gguf import model_folder, packed, read_header
from springroll.gguf.folder import WEIGHTS as GGUF
from springroll.memory import check_fits
from springroll.models.decoder_config import shape_leaves
from springroll.models.hf.decoder import DECODER
from springroll.models.hf.decoder import FAMILIES as DECODERS
from springroll.models.hf.family import Config, Family, Naming, Stored, Tensor
from springroll.models.hf.mxfp4 import with_mxfp4
from springroll.models.hf.pth import mapped_pth
from springroll.models.hf.rwkv7 import RWKV7_FAMILY, blinkdl, blinkdl_config
from springroll.program import program
from springroll.safetensors_map import forget, mapped

ENDS = 1 << 16  # bytes of both ends of a file that go into its fingerprint
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model"  # of PEFT
# What the weights of a folder may be: one file, or several that an index names; the first counts.
FORMS = (
    (SINGLE, INDEX),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    (GGUF, f"{GGUF}.index.json"),
)
FAMILIES: dict[str, Family[Any]] = {**dict.fromkeys(DECODERS, DECODER), "rwkv7": RWKV7_FAMILY}
FLOATS = (jnp.bfloat16, np.float16, np.float32, np.float64)


@dataclass(frozen=True)
class Checkpoint:
    """An open model: what it is, and views of all its tensors in the mapped files."""

    config: Config
    tensors: Mapping[str, Tensor]
    naming: Naming[Any]

    def stored(self, path: str, shape: tuple[int, ...], layer: int | None = None) -> list[Stored]:
        """The tensors that a leaf is made of, or a layer of it; see `Naming`."""
        return list(self.naming.stored(self.config, path, shape, layer))


def family_of(config: Config) -> Family[Any]:
    """The family whose configurations are of that type."""
    return next(family for family in FAMILIES.values() if isinstance(config, family.config))


def is_hf_folder(path: str | Path) -> bool:
    """Whether `load_hf` would look for a model there: a folder whose `config.json` has a
    `model_type`, a GGUF file, or an RWKV-7 of its authors, a file or a folder with one."""
    path = model_folder(path)
    return _lone_file(path) is not None or "model_type" in _config_values(path)


def read_config(folder: str | Path) -> Config:
    """The shape of the model in a folder, or of a lone config.json; no weights are read."""
    folder = model_folder(folder)
    lone = _lone_file(folder)
    if lone is not None:
        return blinkdl_config(_tensors_of(lone), str(lone))
    values, where = read_json(folder), _config_file(folder)
    kind = values.get("model_type")
    if "run_id" in values and kind is None:
        raise InputError(
            f"{folder} is a run, not a model; `{program()} export {folder} FOLDER` writes its "
            "model to a folder"
        )
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise InputError(f"{where}: model_type is {brief(kind)}; known are {', '.join(FAMILIES)}")
    return FAMILIES[kind].read(values, str(where))


def read_json(folder: str | Path) -> JsonObject:
    """The config.json of a folder as it stands there."""
    return atomic.read_json(_config_file(model_folder(folder)))


def _config_file(folder: Path) -> Path:
    """The config.json of a folder; what is one by itself is given as it is."""
    lone = folder.suffix == ".json" and os.path.isfile(folder)
    return folder if lone else folder / "config.json"


def context_length(folder: str | Path) -> int | None:
    """Tokens that a model reads at once, as its config.json says; None where it does not say it, or
    where the model has a state in place of a context."""
    values = _config_values(Path(folder))
    if values.get("model_type") == "rwkv7":
        return None
    rope = values.get("rope_scaling") or values.get("rope_parameters")
    rope = rope if isinstance(rope, dict) else {}
    number = lambda x: x if isinstance(x, int | float) and 1 <= x < 2**40 else 0
    scaled = number(rope.get("factor")) * number(rope.get("original_max_position_embeddings"))
    return int(max(number(values.get("max_position_embeddings")), scaled)) or None


def open_hf(folder: str | Path, config: Config | None = None) -> Checkpoint:
    """Open a folder; no weights are read, but all that can be wrong with them is found.

    Only a head that the config calls a copy of the embedding is compared with it, where a folder
    holds one.

    Args:
        config: by default that of the folder's config.json, or of a lone file's tensors.

    Raises:
        InputError: a file is missing, truncated or damaged, a tensor is missing, has another shape
            than the config says, is quantized, or would not be read; a copy is none.
    """
    folder = model_folder(folder)
    config = read_config(folder) if config is None else config
    lone = _lone_file(folder)
    tensors = _tensors(folder) if lone is None else _tensors_of(lone)
    naming: Naming[Any] = blinkdl
    if lone is None:
        naming = family_of(config).naming_of(_config_values(folder))
        tensors = with_mxfp4(tensors)
    needed = set()
    for path, shape in leaves_of(config):
        for stored in naming.stored(config, path, shape, None):
            _check(tensors, stored, path)
            needed.add(stored.name)
    others = tensors.keys() - needed
    for name in others & naming.copies.keys():
        _check_copy(folder, tensors, name, naming.copies[name])
    known = (*naming.unread, *naming.copies)
    unread = [n for n in tensors if n in others and not n.endswith(known)]
    if unread:
        raise InputError(
            f"{folder} holds {len(unread)} tensors that the model of its config.json has not, "
            f"{unread[0]} first; without them it would compute something else"
        )
    return Checkpoint(config, tensors, naming)


def leaves_of(config: Config) -> list[tuple[str, tuple[int, ...]]]:
    """(path, shape) of every leaf of the parameter tree, in the order of the tree."""
    return list(shape_leaves(family_of(config).shapes(config)).items())


def _check(tensors: Mapping[str, Tensor], stored: Stored, path: str) -> None:
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


def _check_copy(folder: str | Path, tensors: Mapping[str, Tensor], name: str, of: str) -> None:
    """Raise InputError unless a tensor has the bytes of another; compared some rows at a time."""
    check_fits(tensors[of].nbytes, f"{of} of {folder}")  # a file with holes may be of any size
    copy, original = np.asarray(tensors[name]), np.asarray(tensors[of])
    same = copy.shape == original.shape and copy.dtype == original.dtype
    rows = max(1, (1 << 24) * len(original) // original.nbytes)  # 16 MiB
    for start in range(0, len(original), rows) if same else ():
        a, b = copy[start : start + rows], original[start : start + rows]
        same = same and np.array_equal(a.view(np.uint8), b.view(np.uint8))
        forget(a)
        forget(b)
    if not same:
        raise InputError(
            f"{folder} holds a {name} that differs from {of}, and its config.json says that they "
            "are one (tie_word_embeddings); set it to false there, or remove the tensor"
        )


def _config_values(folder: Path) -> JsonObject:
    try:
        return read_json(folder)
    except InputError:
        return {}


def _lone_file(path: Path) -> Path | None:
    """The file of weights that is a model by itself: given, or alone in a folder without config."""
    kinds = (".pth", ".safetensors")
    if os.path.isfile(path):  # which takes names of any length
        if path.stem == ADAPTER_WEIGHTS:
            check_no_adapter(path.parent)
        return path if path.suffix in kinds else None
    if not os.path.isdir(path) or (path / "config.json").exists():
        return None
    check_no_adapter(path)
    models = [file for file in sorted(path.iterdir()) if file.suffix in kinds]
    return models[0] if len(models) == 1 and models[0].name != SINGLE else None


def check_no_adapter(folder: Path) -> None:
    """Raise InputError, which names the base, where a folder holds an adapter as PEFT saves it."""
    if not os.path.isfile(folder / ADAPTER):
        return
    base = atomic.read_json(folder / ADAPTER).get("base_model_name_or_path")
    named = isinstance(base, str) and base != ""
    of = f"an adapter of {brief(base)}" if named else "an adapter, whose base it does not name"
    raise InputError(
        f"{folder} holds {of}, and no model; no option reads adapters: give the base as the model, "
        f"or a folder with both, which PEFT's merge_and_unload or `{program()} export` without "
        "--adapter makes"
    )


def _tensors_of(file: Path) -> Mapping[str, Tensor]:
    if file.suffix == ".gguf":
        return packed(read_header(file))
    return mapped_pth(file) if file.suffix in (".pth", ".bin") else mapped(file)


def weight_files(folder: Path) -> list[Path]:
    """The files with the tensors of a folder, all of which are there."""
    for single, index in FORMS:
        if (folder / index).exists():
            return [folder / name for name in _shards(folder / index)]
        if (folder / single).exists():
            return [folder / single]
    check_no_adapter(folder)
    singles = " nor ".join(single for single, _ in FORMS)
    raise InputError(f"{folder} holds neither {singles}")


def _tensors(folder: Path) -> dict[str, Tensor]:
    """Tensor name -> view of the mapped file that holds it."""
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder):
        found = _tensors_of(file)
        twice = next((name for name in found if name in tensors), None)
        if twice is not None:
            raise InputError(f"{folder} holds {twice} twice, the second time in {file.name}")
        tensors |= found
    return tensors


def _shards(index: Path) -> list[str]:
    """The files that an index names, all of which are there."""
    folder = index.parent
    where = atomic.read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise InputError(f"cannot read {index}: expected JSON with a weight_map of texts")
    names = sorted(set(where.values()))
    for name in names:
        paths = PurePosixPath(name), PureWindowsPath(name)
        if any(path.anchor or ".." in path.parts for path in paths):
            raise InputError(f"{index} names {name}, which lies outside of the folder")
    lost = [name for name in names if not os.path.isfile(folder / name)]
    if lost:
        raise InputError(
            f"{folder} lacks {len(lost)} of its {len(names)} shards, {lost[0]} first; "
            "download it again"
        )
    return names


@functools.cache
def fingerprint(folder: Path) -> str:
    """16 hex digits of a model's files: their names, sizes and both ends of each."""
    whole = hashlib.sha256()
    lone = _lone_file(folder)
    kinds = (".json", ".safetensors", ".pth")
    files = {lone} if lone else {path for path in folder.iterdir() if path.suffix in kinds}
    if not any(path.suffix != ".json" for path in files):
        files.update(weight_files(folder))
    for path in sorted(files):
        with opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(ENDS)
            file.seek(max(0, size - ENDS))
            whole.update(f"{path.name} {size}".encode() + start + file.read())
    return whole.hexdigest()[:16]
