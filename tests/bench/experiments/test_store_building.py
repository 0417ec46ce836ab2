"""Building the store of a streamed run takes its memory and a slice."""

import json

import pytest

from bench import store_building


@pytest.mark.slow
def test_the_peak_is_at_most_a_tenth_above_the_store(capsys):
    store_building.main("llama-350m")
    found = json.loads(capsys.readouterr().out)
    assert 3.6e9 < found["store_bytes"] <= found["resident_bytes"]
    assert found["ratio"] <= 1.1
