"""The bench of an update's memory, at a small shape: nothing is run."""

import pytest

from bench import update_memory
from springroll.models.decoder_config import DecoderConfig

pytestmark = pytest.mark.slow


def test_an_update_takes_little_beside_the_weights():
    config = DecoderConfig(
        vocab=4096, hidden=1024, layers=16, heads=8, kv_heads=8, head_dim=128, ffn=3072
    )
    # As small beside this model as the usual slices are beside one of 1.5 billion parameters.
    result = update_memory.run(config, members=8, slice_bytes=1 << 23)
    assert result["over_weights_and_factors"] < 1.25
    assert result["ratio"] > 4
