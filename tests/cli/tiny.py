"""The smallest run that has everything, as a command line; the command in its own process."""

import subprocess
import sys
from pathlib import Path

from springroll.cli import job
from springroll.pretrain import JOB
from springroll.pretrain.config import PretrainConfig

TEXT = "".join(f"def times_{i}(x):\n    return {i} * x\n\n" for i in range(300))
SIZE = (
    "--hidden 8 --pop-size 16 --tokens-per-member 4 --streams 4 --valid-streams 2 "
    "--valid-tokens 32 --devices 1 --log-every 0"
).split()


def text_file(folder: Path) -> Path:
    """A corpus of 12 kB."""
    path = folder / "text.py"
    path.write_text(TEXT)
    return path


def pretrain(data: Path, out: Path, *more: str) -> list[str]:
    """The arguments of a tiny `springroll pretrain`."""
    return ["pretrain", "--data", str(data), "--out", str(out), *SIZE, *more]


def config_of(argv: list[str]) -> PretrainConfig:
    """What `springroll pretrain` makes of arguments."""
    return job.config_of(JOB, argv)


def files(folder: Path) -> dict[str, bytes]:
    """Everything below a folder, to see that nothing was touched."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def start(arguments: list[str]) -> subprocess.Popen:
    """`springroll ARGUMENTS` as a process, its errors readable."""
    command = [sys.executable, "-m", "springroll", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcome(process: subprocess.Popen) -> tuple[int, str]:
    """Exit code and standard error of a process that ends by itself."""
    _, said = process.communicate(timeout=120)
    return process.returncode, said
