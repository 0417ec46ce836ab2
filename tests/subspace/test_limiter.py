"""The norm of an update grows by at most gamma a step, each matrix by itself."""

import jax.numpy as jnp
import numpy as np

from springroll.subspace.channels import limit_growth


def test_growth_is_limited_and_shrinking_is_not():
    norm, before = jnp.array([2.0, 2.0, 2.0]), jnp.array([1.0, 2.0, 4.0])
    factor, after = limit_growth(norm, before, 1.01)
    np.testing.assert_allclose(factor, [0.505, 1.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(after, factor * norm, rtol=1e-6)


def test_nothing_before_is_no_limit():
    factor, after = limit_growth(jnp.float32(7.0), jnp.float32(0.0))
    assert float(factor) == 1.0 and float(after) == 7.0


def test_a_silent_step_is_forgotten():
    """An expert without tokens goes on from the norm it had."""
    factor, after = limit_growth(jnp.float32(0.0), jnp.float32(3.0))
    assert float(factor) == 1.0 and float(after) == 3.0
    _, after = limit_growth(jnp.float32(100.0), after)
    np.testing.assert_allclose(after, 3.03, rtol=1e-6)


def test_growth_is_geometric():
    """From 1 to 2 takes 70 steps at 1 % a step."""
    norm, steps = jnp.float32(1.0), 0
    while float(norm) < 2:
        _, norm = limit_growth(jnp.float32(2.0), norm)
        steps += 1
    assert steps == 70
