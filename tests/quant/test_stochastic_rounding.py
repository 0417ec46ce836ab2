"""Stochastic rounding keeps the expected value and nothing but the two neighbours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.errors import InputError
from springroll.quant.stochastic_rounding import round_stochastically

N = 40_000


@pytest.mark.parametrize("value", [1.001, -0.3337, 3.1e-5, 12345.678, -7.3e-30])
def test_unbiased_between_neighbours(value):
    x = jnp.full((N,), value, jnp.float32)
    bits = jax.random.bits(jax.random.key(0), (N,), jnp.uint32)
    y = np.asarray(round_stochastically(x, bits).astype(jnp.float32), np.float64)
    neighbours = np.unique(y)
    exact = float(x[0])
    assert len(neighbours) == 2 and neighbours[0] < exact < neighbours[1]
    gap = neighbours[1] - neighbours[0]
    assert gap <= abs(exact) * 2.0**-7
    assert abs(y.mean() - exact) < 5 * gap / np.sqrt(4 * N)


def test_exact_values_infinities_and_nan_stay():
    x = jnp.array([0.0, -0.0, 1.0, -2.5, jnp.inf, -jnp.inf, jnp.nan], jnp.float32)
    for bits in (0, 0xFFFFFFFF):
        y = round_stochastically(x, jnp.full(x.shape, bits, jnp.uint32))
        np.testing.assert_array_equal(y.astype(jnp.float32), x)


def test_other_dtypes_are_refused():
    with pytest.raises(InputError, match="bfloat16; expected float32"):
        round_stochastically(jnp.ones(2, jnp.bfloat16), jnp.zeros(2, jnp.uint32))
