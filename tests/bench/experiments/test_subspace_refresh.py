"""The refresh bench at a size where everything takes milliseconds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench.subspace_refresh import ENERGY, batch, in_backward, run
from springroll.subspace.basis import overlap, power_step, random_basis

pytestmark = pytest.mark.slow


def test_a_power_step_is_near_the_best_and_cheaper():
    result, smaller = run(ranks=(32, 8), size=128, tokens=128, repeats=1)
    assert result["energy"]["power"] >= ENERGY
    assert result["energy"]["in_backward"] >= ENERGY
    assert result["energy"]["stale"] < result["energy"]["power"]
    assert result["ours"] > 0 and result["baseline"] == smaller["baseline"] > 0


def test_the_backward_form_finds_the_same_subspace():
    x, dy = batch(jax.random.key(0), 32, 64, 0.75)
    basis = random_basis(jax.random.key(1), (32, 6))
    one, other = power_step(x.T @ dy, basis), in_backward(x, dy, basis)
    np.testing.assert_allclose(overlap(one, other), 1, atol=1e-3)


def test_batches_share_their_directions():
    x, _ = batch(jax.random.key(0), 32, 2000, 1.0)
    other, _ = batch(jax.random.key(1), 32, 2000, 1.0)
    covariance = lambda x: x.T @ x / len(x)
    gap = jnp.linalg.norm(covariance(x) - covariance(other)) / jnp.linalg.norm(covariance(x))
    assert float(gap) < 0.1 and float(jnp.max(jnp.abs(x - other))) > 0.5
