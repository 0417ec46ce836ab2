"""What stands beside the tensors of a checkpoint: a JSON file with their checksum and its own.

    {"format": ..., "generation": 42, "sha256": ..., "bytes": ..., "meta": {...}, "checksum": ...}

`checksum` is the SHA-256 of all other entries. Version 1, of earlier springrolls, has none; of both
the generation must be that of the file name. Imports no jax.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from springroll.atomic import JsonObject, read_json, write_json
from springroll.errors import InputError

VERSION_1 = "springroll-checkpoint-1"
VERSION_2 = "springroll-checkpoint-2"
_NAME = re.compile(r"[0-9]{9,18}\.json")
_OURS = re.compile(r"[0-9]{9,18}\.(json|safetensors)(\.tmp)?")
_TYPES = {"generation": int, "sha256": str, "bytes": int, "meta": dict}


class Damaged(Exception):
    """A checkpoint whose bytes are not the ones that were written; an older one may serve."""


def saved(folder: Path) -> list[Path]:
    """The checkpoints in a folder (their JSON files), oldest first."""
    named = (path for path in folder.glob("*.json") if _NAME.fullmatch(path.name))
    return sorted((path for path in named if path.is_file()), key=lambda path: int(path.stem))


def files_of_checkpoints(folder: Path) -> list[Path]:
    """All files in a folder that checkpoints are made of, whole or half written; a JSON before its
    tensors."""
    ours = (path for path in folder.iterdir() if _OURS.fullmatch(path.name))
    return sorted(path for path in ours if path.is_file())


def write_sidecar(sidecar: Path, *, digest: str, size: int, meta: Mapping[str, Any]) -> None:
    """Describe tensors that are on disk already; from here on the checkpoint exists.

    Args:
        sidecar: the JSON file, named by its generation.
        digest: SHA-256 of the tensors' file.
        size: its bytes.
        meta: JSON values.
    """
    about = {
        "format": VERSION_2,
        "generation": int(sidecar.stem),
        "sha256": digest,
        "bytes": size,
        "meta": dict(meta),
    }
    write_json(sidecar, about | {"checksum": _checksum(about)})


def read_sidecar(sidecar: Path) -> JsonObject:
    """What `write_sidecar` was given.

    Raises:
        Damaged: the file is torn or lost, so that an older checkpoint may serve.
        InputError: it is whole JSON, but not what was written.
    """
    try:
        about = read_json(sidecar)
    except InputError as error:
        raise Damaged(str(error)) from None
    if about.get("format") not in (VERSION_1, VERSION_2):
        raise Damaged(f"{sidecar} does not describe a checkpoint")
    for name, kind in _TYPES.items():
        if type(about.get(name)) is not kind:
            raise Damaged(f"{sidecar} does not describe a checkpoint")
    checksum = about.pop("checksum", None)
    if about["format"] == VERSION_2 and checksum != _checksum(about):
        raise _changed(sidecar, "its checksum does not hold")
    if about["generation"] != int(sidecar.stem):
        raise _changed(sidecar, f"it says generation {about['generation']}")
    return about


def _checksum(about: JsonObject) -> str:
    text = json.dumps(about, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _changed(sidecar: Path, how: str) -> InputError:
    return InputError(
        f"{sidecar} was changed after it was written: {how}; restore it, or move it away to take "
        f"the checkpoint before it"
    )
