"""How the command was started, for lines that the user is to copy."""

import os
import shutil
import sys
from pathlib import Path


def program() -> str:
    """`springroll` where a shell finds this very program by that name, else its path as typed.

    `make demo` installs it as `.venv/bin/springroll`, which is not on the PATH.
    """
    started = Path(sys.argv[0])
    if started.name != "springroll" or not started.exists():
        return "springroll"
    found = shutil.which("springroll")
    return "springroll" if found and os.path.samefile(found, started) else str(started)
