"""The bench of a layer-wise step's memory, at a small shape: nothing is run."""

import pytest

from bench import layerwise_memory
from springroll.models.decoder_config import DecoderConfig

pytestmark = pytest.mark.slow


def test_one_layers_gradient_instead_of_all():
    config = DecoderConfig(
        vocab=256, hidden=128, layers=16, heads=4, kv_heads=4, head_dim=32, ffn=352
    )
    result = layerwise_memory.run(config, tokens=16)
    weights = 4 * config.parameters / layerwise_memory.GIB
    assert result["arguments"] < 1.15 * weights  # Adam's moments of embedding and head alone
    assert result["temporary"] < 0.4 * weights
    assert result["adamw_arguments"] + result["adamw_temporary"] > 3.9 * weights
    assert result["ratio"] > 2.5
