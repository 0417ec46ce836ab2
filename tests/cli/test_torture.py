"""Cut short a hundred times at random, a run of each job ends with an undisturbed one's bytes."""

import json
import subprocess
import sys

import pytest

from tests.torture import JOBS

TIMES = 100


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("how", ["killed", "full"])
def test_cut_short_at_random_a_run_ends_with_the_same_bytes(job, how, tmp_path):
    line = [sys.executable, "-m", "tests.torture", job, how, str(TIMES), str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    assert found["cut_short"] >= TIMES and found["runs"] >= 1
    assert (found["different"], found["tracebacks"], found["faults"]) == ([], 0, 0)
