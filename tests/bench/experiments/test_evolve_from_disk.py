"""The bench of evolution from files, at a tiny shape: equal to the whole model, nothing written."""

import jax
import numpy as np
import pytest

from bench import evolve_from_disk
from springroll.bench.process_memory import process_bytes
from springroll.models.decoder_config import named

pytestmark = pytest.mark.slow


def test_fitness_is_that_of_the_whole_model(tmp_path):
    config = named("llama-tiny")
    result = evolve_from_disk.run(
        config, members=4, tokens=5, place=str(tmp_path), dtype=np.float32
    )
    assert result["difference"] < 1e-5
    assert result["nats"] == pytest.approx(np.log(config.vocab), rel=0.1)
    assert result["fetched_gib"] == 0 and result["layers_there"] <= 3
    layers = sum(x.size for x in jax.tree.leaves(stacked(config)))
    assert result["sent_gib"] == pytest.approx(4 * layers / evolve_from_disk.GIB, rel=1e-3)
    assert list(tmp_path.iterdir()) == []


def stacked(config):
    *layers, _ = evolve_from_disk.random_bundles(config, np.float32)
    return layers


def test_the_big_one_is_big_and_its_layers_differ():
    big = evolve_from_disk.FOUR_BILLION
    assert 4.0e9 <= big.parameters <= 4.2e9
    first, second, *_ = evolve_from_disk.random_bundles(named("llama-tiny"), np.float32)
    projections = [layer["self_attn"]["q_proj"] for layer in (first, second)]
    assert np.abs(projections[0] - projections[1]).max() > 0.01
    assert (first["input_layernorm"] == 1).all()


def test_memory_is_watched():
    with evolve_from_disk.peak_memory() as peak:
        there = np.ones(1 << 23)
        before = process_bytes("RssAnon")
    assert peak["own"] >= min(before, there.nbytes)
