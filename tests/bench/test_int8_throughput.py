"""The benchmark of integer training, at a size that takes seconds."""

import pytest

from springroll.bench import int8_throughput


@pytest.mark.slow
def test_throughput_is_measured_beside_inference():
    result = int8_throughput.run(1, 16, 8, 4, None, repeats=2, registers="int8")
    assert result["ours"] > 0 and result["baseline"] > 0
    assert result["ratio"] == pytest.approx(result["ours"] / result["baseline"], rel=1e-2)
    assert result["registers"] == "int8"
