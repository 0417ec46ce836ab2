"""The product of RWKV-7 and its gradients are those of the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.models import layers
from springroll.models.rwkv7.mix import linear


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(5, 3), (2, 5, 3)], ids=["rows", "rows of tokens"])
def test_gradients_are_those_of_the_plain_product(shape, dtype):
    rng = np.random.default_rng(0)
    x, w = jnp.asarray(rng.normal(size=shape), dtype), jnp.asarray(rng.normal(size=(4, 3)), dtype)
    g = jnp.asarray(rng.normal(size=(*shape[:-1], 4)), dtype)

    def run(product):
        y, back = jax.vjp(product, x, w)
        return y, *back(g)

    for found, expected in zip(run(linear), run(layers.linear), strict=True):
        assert found.dtype == dtype and found.shape == expected.shape
        wide = lambda leaf: np.asarray(leaf, np.float32)
        np.testing.assert_allclose(wide(found), wide(expected), rtol=1e-2, atol=1e-6)
