"""How springroll was started and installed, for lines that the user is to copy."""

import json
import os
import shutil
import sys
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlparse


def program() -> str:
    """`springroll` where a shell finds this very program by that name, else its path as typed.

    `make demo` installs it as `.venv/bin/springroll`, which is not on the PATH.
    """
    started = Path(sys.argv[0])
    if started.name != "springroll" or not started.exists():
        return "springroll"
    return "springroll" if _found("springroll", started) else str(started)


def pip_install(extra: str) -> str:
    """The command that adds an extra to this environment, from where springroll came from."""
    pip = Path(sys.executable).with_name("pip")
    command = "pip" if _found("pip", pip) else f"{_short(sys.executable)} -m pip"
    return f"{command} install {_source(extra)}"


def _source(extra: str) -> str:
    """`'springroll[extra]'`, or the same of the clone that springroll was installed from."""
    try:
        origin = metadata.distribution("springroll").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        origin = None
    found = json.loads(origin) if origin else {}
    if "dir_info" not in found:
        return f"'springroll[{extra}]'"
    folder = _short(unquote(urlparse(found["url"]).path))
    editable = "-e " if found["dir_info"].get("editable") else ""
    return f"{editable}'{folder}[{extra}]'"


def _found(name: str, path: Path) -> bool:
    """Whether a shell finds this file by that name."""
    found = shutil.which(name)
    return found is not None and path.exists() and os.path.samefile(found, path)


def _short(path: str) -> str:
    """Relative where it lies below the working directory."""
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path
