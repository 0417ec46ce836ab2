"""The files that one generation of each job passes through, in the order of the first visit.

    python -m tests.walk

CONTRIBUTING tells the same as a story; this shows it of runs that are made now. A generation of
compiled programs is meant: the one after the first two, which trace and compile.
"""

import contextlib
import io
import sys
import tempfile
from pathlib import Path

import springroll
from springroll.cli.main import main
from springroll.run.journal import Journal
from tests.digests import RUNS, inputs

SOURCE = Path(springroll.__file__).parent
JOBS = ("pretrain int8", "train adamw", "finetune float32", "rl eggroll")
QUIET = 2  # generations before the one that is followed


def visited(command: list[str]) -> list[str]:
    """Files below src/springroll whose functions run in one generation of a command."""
    files: dict[str, None] = {}
    append, done = Journal.append, []

    def follow(frame, event, argument):
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(SOURCE):
            files.setdefault(str(path.relative_to(SOURCE)))

    def counted(*arguments):
        append(*arguments)
        done.append(None)
        sys.setprofile(follow if len(done) == QUIET else None)

    setattr(Journal, "append", counted)  # noqa: B010
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert main(command) == 0
    finally:
        sys.setprofile(None)
        setattr(Journal, "append", append)  # noqa: B010
    return list(files)


def walk() -> dict[str, list[str]]:
    """The files of a generation of each job."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths = inputs(folder)
        found = {}
        for name in JOBS:
            words = [word.format(**paths) for word in RUNS[name].split()]
            steps = next(i for i, word in enumerate(words) if word in ("--generations", "--steps"))
            words[steps + 1] = str(QUIET + 1)
            found[name] = visited([*words, "--out", str(folder / name.replace(" ", "-"))])
        return found


if __name__ == "__main__":
    for name, files in walk().items():
        print(f"{name}: {len(files)} files\n  " + "\n  ".join(files))
