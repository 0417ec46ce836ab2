"""Running statistics against those of all observations at once."""

import jax.numpy as jnp
import numpy as np

from springroll.envs.observation_scaling import centered_sums, fresh


def told(batches):
    scaling = fresh(batches[0].shape[1])
    for batch in batches:
        sums = centered_sums(jnp.asarray(batch), scaling)
        scaling = scaling.updated(sums, jnp.int32(len(batch)))
    return scaling


def test_they_are_mean_and_variance_of_all():
    random = np.random.default_rng(0)
    batches = [random.normal(3.0, 2.0, (n, 4)).astype(np.float32) for n in (5, 70, 400)]
    found, everything = told(batches), np.concatenate(batches)
    assert float(found.steps) == len(everything)
    np.testing.assert_allclose(found.mean, everything.mean(0), rtol=1e-4)
    np.testing.assert_allclose(found.variance, everything.var(0), rtol=1e-3)


def test_large_means_do_not_drown_the_variance():
    random = np.random.default_rng(1)
    batches = [random.normal(100.0, 0.1, (500, 1)).astype(np.float32) for _ in range(6)]
    found = told(batches)
    np.testing.assert_allclose(found.variance, np.concatenate(batches).var(0), rtol=0.1)


def test_scaled_observations_have_unit_deviation_and_are_cut():
    random = np.random.default_rng(2)
    batch = random.normal(-5.0, 3.0, (2000, 2)).astype(np.float32)
    scaling = told([batch])
    scaled = scaling.apply(jnp.asarray(batch))
    np.testing.assert_allclose(scaled.mean(0), 0.0, atol=1e-3)
    np.testing.assert_allclose(scaled.std(0), 1.0, atol=1e-3)
    assert float(scaling.apply(jnp.array([1e9, -1e9])).max()) == 10.0


def test_before_the_first_they_pass_and_constants_are_not_blown_up():
    observation = jnp.array([0.5, -2.0])
    np.testing.assert_allclose(fresh(2).apply(observation), observation, rtol=1e-3)
    same = told([np.full((50, 2), 7.0, np.float32)] * 2)
    np.testing.assert_allclose(same.apply(jnp.full(2, 7.0)), 0.0, atol=1e-3)
