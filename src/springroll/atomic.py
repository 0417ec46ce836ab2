"""Files that are whole or absent, whenever the process or the machine dies. Imports no jax."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from springroll.bounded import parse_json, read_bytes
from springroll.errors import InputError

JsonObject: TypeAlias = dict[str, Any]
"""A JSON object as `json.loads` gives it."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` when the block ends: temporary name, fsync,
    rename.

    When the block raises, `path` is left as it was.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Replace `path` by `data` as indented JSON."""
    with replacing(path) as file:
        file.write((json.dumps(data, indent=2) + "\n").encode())


def read_json(path: Path) -> JsonObject:
    """The JSON object in `path`; InputError when it is missing, is none, or exceeds the bounds of
    `springroll.bounded`."""
    data = parse_json(read_bytes(path), str(path))
    if not isinstance(data, dict):
        raise InputError(f"{path} is not a JSON object")
    return data


def _sync_folder(folder: Path) -> None:
    """A rename lasts only once the folder itself is on disk (Windows neither has nor needs it)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
