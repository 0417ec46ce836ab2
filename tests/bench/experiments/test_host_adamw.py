"""The bench of AdamW on the host: what it times is what it says, and its ratios follow."""

import json

import numpy as np
import pytest

from bench import host_adamw
from bench.host_adamw import BYTES, run, variants

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def result():
    return run(numbers=5000, repeats=1, chunk=700)


def test_bytes_that_pass_are_counted_alike(result):
    """Read and written, and for the triad the line that is fetched to be overwritten."""
    adamw = 2 * (2 + 2 + 4 + 4) + 2
    assert BYTES["adamw"] == adamw and BYTES["float32"] == 2 * (4 + 4 + 4) + 4
    assert BYTES["triad"] == 4 + 4 + 2 * 4 and BYTES["in_place"] == 4 + 4 + 4
    assert result["ratio"] == pytest.approx(result["ours"] / result["baseline"], rel=1e-2)
    assert result["ratio_as_named"] == pytest.approx(result["ratio"] * 16 / 12, rel=1e-2)


def test_one_core_and_all_are_reported(result):
    for table in ("gigabytes_per_second", "billion_numbers_per_second"):
        assert "1_threads" in result[table]
        for row in result[table].values():
            assert {"adamw", "float32", "triad", "in_place"} <= row.keys()
            assert all(x > 0 for x in row.values())
    rates = result["billion_numbers_per_second"]["1_threads"]
    bandwidth = result["gigabytes_per_second"]["1_threads"]
    assert bandwidth["adamw"] == pytest.approx(26 * rates["adamw"], rel=1e-2)
    json.dumps(result, allow_nan=False)


def test_every_number_is_passed_once(monkeypatch):
    seen = []
    kernel = lambda *arguments: seen.append(arguments)
    monkeypatch.setattr(host_adamw, "_triads", lambda: (kernel, kernel))
    for name, count in (("triad", 3), ("in_place", 2)):
        seen.clear()
        jobs = list(variants(1000, chunk=300)[name]())
        for job in jobs:
            job()
        assert len(jobs) == 4 and all(len(arguments) == count + 1 for arguments in seen)
        assert [arguments[0].size for arguments in seen] == [300, 300, 300, 100]
    assert len(list(variants(1000, chunk=300)["adamw"]())) == 4


def test_torch_is_left_out_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(host_adamw.importlib.util, "find_spec", lambda name: None)
    assert host_adamw.torch_adamw(10) is None
    rates = host_adamw.rates(1000, threads=1, repeats=1, chunk=100)
    assert "torch" not in rates and np.isfinite(list(rates.values())).all()
