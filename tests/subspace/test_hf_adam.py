"""hf_adamw: epsilon before the bias correction, decay of the weight after the step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from springroll.subspace.hf_adam import correction, hf_adamw


def test_equals_its_formula():
    lr, b1, b2, eps, decay = (lambda t: 0.1 / (t + 1)), 0.8, 0.95, 1e-2, 0.3
    tx = hf_adamw(lr, b1, b2, eps, decay)
    w = np.random.RandomState(0).standard_normal(5)
    params: Any = {"w": jnp.asarray(w, jnp.float32)}
    state, update = tx.init(params), jax.jit(tx.update)
    m = v = np.zeros(5)
    for t in range(4):
        g = np.random.RandomState(t + 1).standard_normal(5)
        updates, state = update({"w": jnp.asarray(g, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        k = np.sqrt(1 - b2 ** (t + 1)) / (1 - b1 ** (t + 1))
        w = (w - lr(t) * k * m / (np.sqrt(v) + eps)) * (1 - lr(t) * decay)
        np.testing.assert_allclose(params["w"], w, rtol=1e-5)


def test_correction_keeps_its_digits():
    """float32 0.999 is off by 1e-8; from 1 - 0.999 that would take five digits."""
    for t in (1, 2, 10, 1000, 10**6):
        exact = np.sqrt(-np.expm1(t * np.log(0.999))) / -np.expm1(t * np.log(0.9))
        np.testing.assert_allclose(correction(jnp.int32(t), 0.9, 0.999), exact, rtol=1e-6)
    assert float(correction(jnp.int32(1), 0.0, 0.0)) == 1.0


def test_decay_needs_weights():
    tx = hf_adamw(0.1, weight_decay=0.1)
    grads = {"w": jnp.ones(3)}
    with pytest.raises(ValueError, match="weight decay needs the parameters"):
        tx.update(grads, tx.init(grads))
    updates: Any = hf_adamw(0.1).update(grads, hf_adamw(0.1).init(grads))[0]
    assert updates["w"].shape == (3,)
