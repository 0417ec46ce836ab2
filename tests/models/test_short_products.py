"""Products of bfloat16 stay products of bfloat16 on a CPU, with sums in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.models.layers import linear
from tests.compiling import normal

X, W = normal(0, 6, 5, 64, dtype=jnp.bfloat16), normal(1, 32, 64, dtype=jnp.bfloat16)
wide = lambda a: np.asarray(a, np.float32)


def test_the_product_is_the_float32_one_rounded():
    exact = np.einsum("abi,oi->abo", wide(X), wide(W))
    got = jax.jit(linear)(X, W)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(wide(got), exact, rtol=2**-8, atol=1e-5)


def test_gradients_are_those_of_the_plain_product():
    plain = lambda x, w: jnp.einsum("...i,oi->...o", x, w)
    loss = lambda product: lambda x, w: jnp.sum(jnp.square(product(x, w).astype(jnp.float32)))
    got = jax.jit(jax.grad(loss(linear), (0, 1)))(X, W)
    exact = jax.grad(loss(plain), (0, 1))(X.astype(jnp.float32), W.astype(jnp.float32))
    for ours, theirs in zip(got, exact, strict=True):
        assert ours.dtype == jnp.bfloat16
        error = np.abs(wide(ours) - theirs) / np.abs(theirs).max()
        assert error.max() < 2**-7


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of the CPU compiler")
def test_no_operand_is_converted():
    text = jax.jit(linear).lower(X, W).compile().as_text() or ""
    products = [line for line in text.splitlines() if " dot(" in line]
    assert products and all("bf16[" not in line.split(" dot(")[0] for line in products)
    assert "f32[32,64]" not in text and "f32[64,32]" not in text
