"""The scripts for a GPU run unattended; here on a CPU, at sizes that take seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "bench"


@pytest.mark.parametrize(
    "name",
    [
        "gpu_evolve",
        "gpu_lowgrad",
        "gpu_decode",
        "gpu_control",
        pytest.param("gpu_stream", marks=pytest.mark.slow),
    ],
)
def test_a_script_measures_everything_and_writes_it(tmp_path, name):
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / f"{name}.py"), "--small", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob(f"{name}-*.json")
    results = json.loads(path.read_text())
    assert len(results) == len(done.stdout.splitlines()) - 1
    assert not [r for r in results if "failed" in r]
