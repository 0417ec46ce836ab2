"""A run killed at any of its file operations ends, resumed, with an undisturbed one's bytes."""

import json
import subprocess
import sys
from pathlib import Path


def test_killed_at_every_file_operation_a_run_ends_with_the_same_bytes(tmp_path):
    script = Path(__file__).with_name("toy_crash.py")
    command = [sys.executable, "-W", "error", str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["points"] > 40  # the hooks were in the way of all of them
    assert found["different"] == []
    assert found["kills"] > 1 and found["often"]
