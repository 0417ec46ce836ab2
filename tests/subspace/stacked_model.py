"""A small scanned language model for tests: q and k share an activation, so do gate and up."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

VOCAB, LAYERS, D, F = 29, 3, 24, 40
RANK = 12
TOKENS = jnp.asarray(np.random.default_rng(5).integers(0, VOCAB, (8, 9)), jnp.int32)


def init(seed=0, layers=LAYERS, dtype=jnp.float32, d=D, f=F):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[-1]), dtype)

    return {
        "embed": draw(VOCAB, d),
        "layers": {
            "q": draw(layers, d, d),
            "k": draw(layers, d, d),
            "gate": draw(layers, f, d),
            "up": draw(layers, f, d),
            "down": draw(layers, d, f),
            "bias": jnp.zeros((layers, d), dtype),
        },
    }


def loss(params, tokens, remat=False):
    def block(x, w):
        h = x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5)
        mixed = jnp.tanh(h @ w["q"].T) * (h @ w["k"].T)
        x = x + jnp.cumsum(mixed, axis=1) / 4 + w["bias"][None, None]
        x = x + (jax.nn.silu(x @ w["gate"].T) * (x @ w["up"].T)) @ w["down"].T
        return x, None

    block = jax.checkpoint(block) if remat else block
    x, _ = lax.scan(block, params["embed"][tokens[:, :-1]], params["layers"])
    logits = (x @ params["embed"].T).astype(jnp.float32)
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], -1)
    return -jnp.mean(picked)


remat_loss = functools.partial(loss, remat=True)


def close(got, expected, tol):
    """Equal up to `tol` of the largest expected entry."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=0, atol=tol * np.max(np.abs(expected)))
