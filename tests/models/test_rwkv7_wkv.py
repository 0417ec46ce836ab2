"""The recurrence in chunks is the recurrence token by token: values, states, gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.models.rwkv7.wkv import LONGEST, Inputs, _inverse, by_chunk, by_token
from tests.compiling import quick_jit

FASTEST = -0.6065  # log of the strongest decay that a model can ask for

token_form = quick_jit(by_token)
chunk_form = quick_jit(by_chunk, static_argnums=2)


def draw(batch, time, heads, width, log_w=None, seed=0):
    """(inputs as a model makes them: p and q from a unit vector and a rate; a state)."""
    rng = np.random.default_rng(seed)
    shape = (batch, time, heads, width)
    r, k, v, kappa = rng.normal(size=(4, *shape))
    kappa = kappa / np.linalg.norm(kappa, axis=-1, keepdims=True)
    log_w = FASTEST * rng.uniform(size=shape) if log_w is None else np.full(shape, log_w)
    state = rng.normal(size=(batch, heads, width, width))
    values = (r, log_w, k, v, -kappa, kappa * rng.uniform(size=shape))
    wide = lambda x: jnp.asarray(x, jnp.float32)
    return Inputs(*map(wide, values)), wide(state)


def relative(found, expected):
    found, expected = np.asarray(found), np.asarray(expected)
    return np.max(np.abs(found - expected)) / np.max(np.abs(expected))


def obvious(inputs, state):
    """The formula in float64, one row and one head at a time."""
    inputs = jax.tree.map(lambda x: np.asarray(x, np.float64), inputs)
    state = np.array(state, np.float64)
    y = np.zeros_like(inputs.r)
    for b, t, h in np.ndindex(y.shape[:3]):
        r, log_w, k, v, p, q = (x[b, t, h] for x in inputs)
        s = state[b, h]
        state[b, h] = s * np.exp(log_w)[None] + np.outer(s @ p, q) + np.outer(v, k)
        y[b, t, h] = state[b, h] @ r
    return y, state


@pytest.mark.parametrize("chunk", [None, 4], ids=["by token", "by chunk"])
def test_both_forms_are_the_formula(chunk):
    inputs, state = draw(2, 11, 2, 8)  # a last chunk that is not full
    y, after = chunk_form(inputs, state, chunk) if chunk else token_form(inputs, state)
    expected = obvious(inputs, state)
    assert relative(y, expected[0]) < 1e-6 and relative(after, expected[1]) < 1e-6


@pytest.mark.parametrize("chunk", [16, LONGEST])
@pytest.mark.parametrize("log_w", [FASTEST, -1e-6], ids=["fast decay", "no decay"])
def test_long_chunks_at_the_ends_of_the_decay_lose_nothing(chunk, log_w):
    inputs, state = draw(1, 128, 1, 16, log_w)
    y, after = chunk_form(inputs, state, chunk)
    expected = obvious(inputs, state)
    assert relative(y, expected[0]) < 5e-6 and relative(after, expected[1]) < 5e-6


def test_a_key_that_is_written_again_and_again_is_no_worse():
    """The triangular system at its hardest: the same kappa at every token, rate 1, no decay."""
    inputs, state = draw(1, 128, 1, 16, -1e-6)
    same = jnp.broadcast_to(inputs.p[:, :1], inputs.p.shape)
    inputs = inputs._replace(p=same, q=-same)
    y, after = chunk_form(inputs, state, LONGEST)
    expected = obvious(inputs, state)
    assert relative(y, expected[0]) < 5e-6 and relative(after, expected[1]) < 5e-6


def test_gradients_are_those_of_the_scan():
    inputs, state = draw(1, 10, 2, 8)

    def gradient(form):
        def total(inputs, state):
            y, after = form(inputs, state)
            return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.cos(after))

        run = quick_jit(jax.grad(total, argnums=(0, 1)))
        return run(inputs, state)

    chunked = gradient(functools.partial(by_chunk, chunk=4))
    for x, y in zip(*map(jax.tree.leaves, (chunked, gradient(by_token))), strict=True):
        assert relative(x, y) < 5e-6


@pytest.mark.parametrize("size", [1, 5, 16])
def test_the_inverse_of_a_triangle_is_found_from_blocks(size):
    a = np.tril(np.random.default_rng(size).uniform(-1, 1, (3, size, size)), -1)
    found = quick_jit(_inverse)(jnp.asarray(a, jnp.float32))
    product = np.einsum("bij,bjk->bik", np.eye(size) - a, found)
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(size), a.shape), atol=1e-4)
    assert np.all(np.triu(found, 1) == 0)
