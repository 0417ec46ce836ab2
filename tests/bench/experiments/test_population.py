"""Steps and forward passes of a population: what they compare, and that the baseline learns."""

import jax
import jax.numpy as jnp
import pytest

from bench import mlp_step, population_forward
from springroll.bench import openes_ratio

pytestmark = pytest.mark.slow


def test_a_step_is_timed_beside_the_published_scheme():
    result = mlp_step.run(pop_size=8, repeats=1)
    assert result["name"] == "mlp_step" and result["ratio"] > 0
    assert result["ratio"] == pytest.approx(result["baseline"] / result["ours"], rel=1e-2)


def test_the_forward_benchmark_runs_and_needs_less_memory_than_dense_members():
    result = population_forward.run(pop_size=16, repeats=1)
    assert result["ratio"] == pytest.approx(result["ours"] / result["baseline"], rel=1e-2)
    assert result["temp_bytes"] < 3 * result["temp_bytes_plain"]
    assert 4 * result["temp_bytes"] < result["temp_bytes_dense"]


def test_the_published_scheme_climbs():
    """The baseline is the whole algorithm, not a part of it: the centre's score rises."""
    observations = jax.random.normal(jax.random.key(2), (64, 8))
    params, step = mlp_step.threefry_twice(64, 1)
    moved = params
    for generation in range(8):
        moved = step(moved, jnp.int32(generation), observations)
    centre = jax.vmap(openes_ratio.score, (None, 0))
    assert centre(moved, observations).mean() > centre(params, observations).mean()
