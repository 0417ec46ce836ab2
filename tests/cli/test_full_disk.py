"""The operating system's own word: no file may grow beyond a limit, which is how a full disk looks.

`tests/torture.py` has the disk full at a random byte of any job; `tests/run/test_crash.py` at every
file operation of the loop.
"""

import os
import subprocess
import sys

import pytest

from springroll.cli.main import main
from tests.cli.tiny import pretrain, text_file

GENERATIONS = 5
LIMITED = """
import resource, sys
from springroll.cli.main import main
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.exit(main(sys.argv[2:]))
"""


def outcome(line, limit):
    """Exit code and last line of a command whose files have a limit of bytes."""
    cache = {"JAX_ENABLE_COMPILATION_CACHE": "false"}  # whose files would count too
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), *line],
        capture_output=True,
        text=True,
        env=os.environ | cache,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_limit_of_any_size_ends_in_one_line_and_a_run_that_goes_on(tmp_path):
    text = text_file(tmp_path)
    end = ("--generations", str(GENERATIONS))
    assert main(pretrain(text, tmp_path / "undisturbed", *end)) == 0
    names = ("journal", f"checkpoints/{GENERATIONS:09d}.safetensors")
    wanted = [(tmp_path / "undisturbed" / name).read_bytes() for name in names]
    sizes = sorted({p.stat().st_size for p in (tmp_path / "undisturbed").rglob("*") if p.is_file()})
    for limit in [0, *(size - 1 for size in sizes)]:
        out = tmp_path / f"limit-{limit}"
        code, said = outcome(pretrain(text, out, *end), limit)
        assert code == 2 and said.startswith("springroll: cannot write"), said
        assert "File too large" in said
        there = (out / "config.json").exists()
        go_on = ["pretrain", "--resume", "--out", str(out)] if there else pretrain(text, out, *end)
        assert main(go_on) == 0
        assert [(out / name).read_bytes() for name in names] == wanted
