"""The scripts for a GPU run unattended; here on a CPU, at sizes that take seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    "name",
    ["gpu_evolve", "gpu_lowgrad", "gpu_decode", "gpu_control", "gpu_stream"],
)
def test_a_script_measures_everything_and_writes_it(tmp_path, name):
    done = subprocess.run(
        [sys.executable, "-m", f"bench.{name}", "--small", "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob(f"{name}-*.json")
    results = json.loads(path.read_text())
    assert len(results) == len(done.stdout.splitlines()) - 1
    assert not [r for r in results if "failed" in r]
