"""CartPole and Pendulum are Gymnasium's, step by step."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.envs.cartpole import cartpole
from springroll.envs.environment import Box, Discrete
from springroll.envs.pendulum import pendulum

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/control.json").read_text())
MAKERS = {"CartPole-v1": cartpole, "Pendulum-v1": pendulum}
KEY = jax.random.key(0)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("which", [0, 1])
def test_an_episode_is_gymnasiums(name, which):
    env, golden = MAKERS[name](), GOLDEN[name][which]
    kind = jnp.int32 if name == "CartPole-v1" else jnp.float32
    start, actions = jnp.asarray(golden["start"]), jnp.asarray(golden["actions"], kind)

    @jax.jit
    def follow(start, actions):
        def turn(state, action):
            step = env.step(KEY, state, action)
            return step.state, (step.observation, step.reward, step.terminated, step.truncated)

        return jax.lax.scan(turn, start, actions)[1]

    observations, rewards, terminated, truncated = follow(start, actions)
    np.testing.assert_allclose(observations, golden["observations"], atol=2e-4)
    np.testing.assert_allclose(rewards, golden["rewards"], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(terminated, golden["terminated"])
    assert not truncated.any()


@pytest.mark.parametrize("name", MAKERS)
def test_time_limit_and_spaces_are_gymnasiums(name):
    env = MAKERS[name]()
    assert (env.name, env.max_steps) == (name, GOLDEN["limits"][name])
    assert MAKERS[name](max_steps=7).max_steps == 7
    assert env.actions == (Discrete(2) if name == "CartPole-v1" else Box((-2.0,), (2.0,)))


def test_cartpole_starts_near_the_middle():
    states, observations = jax.vmap(cartpole().reset)(jax.random.split(KEY, 500))
    assert (states == observations).all()
    assert 0.045 < jnp.abs(states).max() <= 0.05
    assert jnp.abs(states.mean(0)).max() < 0.01


def test_pendulum_starts_anywhere():
    states, observations = jax.vmap(pendulum().reset)(jax.random.split(KEY, 500))
    angle, spin = states.T
    assert 3.0 < jnp.abs(angle).max() <= jnp.pi and 0.95 < jnp.abs(spin).max() <= 1
    np.testing.assert_allclose(observations[:, 0], jnp.cos(angle), atol=1e-6)
    np.testing.assert_allclose(observations[:, 1], jnp.sin(angle), atol=1e-6)


def test_pendulum_counts_turns_but_the_reward_does_not():
    env = pendulum()
    step = lambda angle: env.step(KEY, jnp.array([angle, 1.0]), jnp.array([0.5]))
    once, thrice = step(0.7), step(0.7 + 4 * jnp.pi)
    np.testing.assert_allclose(once.reward, thrice.reward, rtol=1e-4)
    np.testing.assert_allclose(once.observation, thrice.observation, atol=1e-5)
    assert thrice.state[0] > 10


@pytest.mark.parametrize("name", MAKERS)
def test_the_picture_shows_the_lean(name):
    env = MAKERS[name]()
    assert env.frame
    at = 2 if name == "CartPole-v1" else 0
    size = 4 if name == "CartPole-v1" else 2
    left, right = (env.frame(np.eye(size)[at] * lean) for lean in (-0.4, 0.4))
    assert left.dtype == np.uint8 and left.ndim == 3 and (left != right).any()
    across = lambda picture: (picture < 255).any(-1).sum(0)
    half = left.shape[1] // 2
    leaning = [across(p)[:half].sum() - across(p)[half:].sum() for p in (left, right)]
    assert leaning[0] * leaning[1] < 0
