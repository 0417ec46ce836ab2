"""Decay towards the first weights."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from springroll.finetune.evolution import anchored
from springroll.trees import PyTree


def steps(tx, params, push, count):
    state = tx.init(params)
    for _ in range(count):
        updates, state = tx.update({"w": push}, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_without_a_push_weights_go_back():
    first: PyTree = {"w": jnp.array([1.0, -2.0])}
    tx = anchored(0.5)
    state = tx.init(first)
    moved = {"w": jnp.array([3.0, 2.0])}
    updates: PyTree = tx.update({"w": jnp.zeros(2)}, state, moved)[0]
    np.testing.assert_allclose(moved["w"] + updates["w"], [2.0, 0.0])


def test_a_constant_push_ends_at_push_over_share():
    first = {"w": jnp.array([1.0, -2.0])}
    push = jnp.array([0.1, -0.2])
    end: PyTree = steps(anchored(0.2), first, push, 100)
    np.testing.assert_allclose(end["w"] - first["w"], push / 0.2, rtol=1e-5)


def test_it_keeps_the_first_weights_when_they_are_donated():
    first = {"w": jnp.ones(3)}
    state: PyTree = anchored(0.1).init(first)
    assert state.first["w"] is not first["w"]


def test_it_needs_the_params():
    tx = anchored(0.1)
    with pytest.raises(ValueError, match="params"):
        tx.update({"w": jnp.ones(1)}, tx.init({"w": jnp.ones(1)}))
