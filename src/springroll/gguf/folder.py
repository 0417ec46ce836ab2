"""A GGUF file as a Hugging Face folder: its texts written out, its weights where they are.

Whatever reads, trains or writes models takes a folder. For a GGUF file one is made in the user's
cache: config.json and the files of the tokenizer from the file's metadata, and a link to the file.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from springroll.atomic import JsonObject, os_line
from springroll.errors import InputError, as_path
from springroll.gguf.config import config_json
from springroll.gguf.header import read_header
from springroll.gguf.vocabulary import tokenizer_files

WEIGHTS = "model.gguf"  # in the folder
_FORM = 1  # of the texts that are written


def model_folder(path: str | Path) -> Path:
    """The folder of a GGUF file, or of the one in a folder without a config.json; else the path.

    It is made when it is not there yet, for the file as it is now.

    Raises:
        InputError: the file cannot be read (see `read_header`, `config_json`, `tokenizer_files`),
            several lie in the folder, or the cache cannot be written.
    """
    path = as_path(path)
    file = _gguf(path)
    if file is None:
        return path
    real = Path(os.path.realpath(file))
    try:
        about = real.stat()
        key = f"{_FORM} {real} {about.st_size} {about.st_mtime_ns}"
        folder = cache("gguf") / hashlib.sha256(os.fsencode(key)).hexdigest()[:16]
        if not folder.is_dir():
            _write(folder, real)
    except OSError as error:
        raise InputError(
            f"cannot open {file}: {os_line(error)}; its texts are written to a cache, for which "
            "XDG_CACHE_HOME can name another place"
        ) from None
    return folder


def cache(part: str) -> Path:
    """The user's folder for what can be made again."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "springroll" / part


def _gguf(path: Path) -> Path | None:
    if os.path.isfile(path):  # which takes names of any length
        return path if path.suffix == ".gguf" else None
    if not os.path.isdir(path) or (path / "config.json").exists():
        return None
    found = sorted(path.glob("*.gguf"))
    if len(found) > 1:
        raise InputError(
            f"{path} holds {len(found)} GGUF files; give one of them, such as {found[0]}"
        )
    return found[0] if found else None


def _write(folder: Path, file: Path) -> None:
    header = read_header(file)
    if header.metadata.get("split.count", 1) not in (0, 1):
        raise InputError(
            f"{file} is one of several parts; join them with llama-gguf-split --merge first"
        )
    texts = {"config.json": config_json(header), **tokenizer_files(header)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        _fill(temporary, texts, file)
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():  # another process was first
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fill(folder: Path, texts: Mapping[str, JsonObject], file: Path) -> None:
    for name, values in texts.items():
        (folder / name).write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    os.symlink(file, folder / WEIGHTS)
