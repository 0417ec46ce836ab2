"""From outputs to actions: the likeliest, the drawn, any."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.envs.action_choice import choose, uniform
from springroll.envs.environment import Box, Discrete, MultiDiscrete

BOX = Box((-2.0, 0.0), (2.0, 1.0))
MANY = 4000


def drawn(actions, outputs, mask=None, how=choose):
    """MANY actions."""
    keys = jax.random.split(jax.random.key(0), MANY)
    if how is uniform:
        return np.asarray(jax.vmap(lambda key: uniform(actions, key, mask))(keys))
    return np.asarray(jax.vmap(lambda key: choose(actions, outputs, key, mask))(keys))


def test_the_likeliest():
    assert int(choose(Discrete(3), jnp.array([0.0, 2.0, 1.0]), None)) == 1
    several = choose(MultiDiscrete((2, 3)), jnp.array([1.0, 0.0, 0.0, 1.0, 2.0]), None)
    assert several.dtype == jnp.int32
    np.testing.assert_array_equal(several, [0, 2])
    real = choose(BOX, jnp.array([0.5, 0.0, 3.0, 3.0]), None)
    np.testing.assert_allclose(real, [1.0, 0.5])


def test_what_is_drawn_follows_the_softmax():
    logits = jnp.log(jnp.array([0.2, 0.5, 0.3]))
    share = np.bincount(drawn(Discrete(3), logits), minlength=3) / MANY
    np.testing.assert_allclose(share, [0.2, 0.5, 0.3], atol=0.03)


def test_choices_of_several_are_independent():
    outputs = jnp.log(jnp.array([0.3, 0.7, 0.6, 0.4]))
    found = drawn(MultiDiscrete((2, 2)), outputs)
    np.testing.assert_allclose(found.mean(axis=0), [0.7, 0.4], atol=0.03)
    assert abs(np.corrcoef(found.T)[0, 1]) < 0.06


def test_real_numbers_follow_their_mean_and_deviation():
    found = drawn(Box((-1.0,), (1.0,)), jnp.array([0.2, np.log(0.1)], jnp.float32))
    assert abs(found.mean() - 0.2) < 0.01 and abs(found.std() - 0.1) < 0.01


def test_real_numbers_stay_in_their_bounds():
    found = drawn(BOX, jnp.array([5.0, -5.0, 1.0, 1.0]))
    assert found[:, 0].max() == 2.0 and found[:, 1].min() == 0.0
    assert (found >= BOX.low).all() and (found <= BOX.high).all()


@pytest.mark.parametrize("how", [choose, uniform])
def test_a_mask_lets_nothing_through(how):
    mask = jnp.array([True, False, True])
    found = drawn(Discrete(3), jnp.array([0.0, 50.0, 0.0]), mask, how)
    assert set(found) == {0, 2}
    assert abs((found == 0).mean() - 0.5) < 0.03
    assert int(choose(Discrete(3), jnp.array([0.0, 50.0, 1.0]), None, mask)) == 2


def test_any_action_is_equally_likely():
    share = np.bincount(drawn(Discrete(4), None, how=uniform), minlength=4) / MANY
    np.testing.assert_allclose(share, 0.25, atol=0.03)
    real = drawn(BOX, None, how=uniform)
    np.testing.assert_allclose(real.mean(axis=0), [0.0, 0.5], atol=0.06)
    np.testing.assert_allclose(real.std(axis=0), np.array([4.0, 1.0]) / 12**0.5, atol=0.04)
