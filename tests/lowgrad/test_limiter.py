"""The norm of an update grows by at most gamma a step, each matrix by itself."""

import jax
import jax.numpy as jnp
import numpy as np

from springroll.lowgrad.limiter import limit_growth


def norms(update):
    return np.linalg.norm(np.asarray(update), axis=(-2, -1))


def test_growth_is_limited_and_shrinking_is_not():
    update = jax.random.normal(jax.random.key(0), (3, 4, 5))
    size = norms(update)
    before = jnp.asarray(size * np.array([0.5, 1.0, 2.0], np.float32))
    limited, after = limit_growth(update, before, 1.01)
    np.testing.assert_allclose(norms(limited), size * [0.505, 1.0, 1.0], rtol=1e-5)
    np.testing.assert_allclose(after, norms(limited), rtol=1e-5)
    direction = lambda x: np.asarray(x) / norms(x)[:, None, None]
    np.testing.assert_allclose(direction(limited), direction(update), atol=1e-6)


def test_nothing_before_is_no_limit():
    update = jax.random.normal(jax.random.key(0), (4, 5))
    limited, after = limit_growth(update, jnp.zeros(()))
    np.testing.assert_array_equal(limited, update)
    np.testing.assert_allclose(after, norms(update), rtol=1e-6)


def test_a_silent_step_is_forgotten():
    """An expert without tokens goes on from the norm it had."""
    limited, after = limit_growth(jnp.zeros((4, 5)), jnp.float32(3.0))
    np.testing.assert_array_equal(limited, 0)
    assert float(after) == 3.0
    limited, after = limit_growth(jnp.ones((4, 5)), after)
    np.testing.assert_allclose(after, 3.03, rtol=1e-6)
