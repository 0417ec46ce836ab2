"""gymnax' two interfaces, before and since 1.0, on a stand-in: a counter that pays its count."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.envs import gymnax_suite
from springroll.envs.environment import Box, Discrete


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    time: jax.Array | int


@dataclasses.dataclass
class Params:
    max_steps_in_episode: int = 6

    def replace(self, **changes):
        return dataclasses.replace(self, **changes)


class Counter:
    """Ends by itself after four steps of action 1; `step_env` of before 1.0 says also when time
    is over."""

    space = SimpleNamespace(n=3, shape=())

    def action_space(self, params):
        return self.space

    def reset_env(self, key, params):
        return jnp.zeros((2, 2)), State(0)  # a Python number, as gymnax has it

    def _ends(self, time, action):
        return (time >= 4) & (action == 1)

    def step_env(self, key, state, action, params):
        time = state.time + 1
        over = self._ends(time, action) | (time >= params.max_steps_in_episode)
        seen = jnp.full((2, 2), time)
        return seen, State(time), time, over, {}


class CounterOfToday(Counter):
    def step_env(self, key, state, action, params):
        seen, state, reward, _, info = super().step_env(key, state, action, params)
        return seen, state, reward, self._ends(state.time, action), info

    def is_truncated(self, state, params):
        return state.time >= params.max_steps_in_episode


@pytest.fixture(params=[Counter, CounterOfToday], ids=["before 1.0", "since 1.0"])
def counter(request, monkeypatch):
    module = SimpleNamespace(make=lambda name: (request.param(), Params()))
    monkeypatch.setattr(gymnax_suite, "imported", lambda name: module)
    monkeypatch.setattr(gymnax_suite, "version", lambda name: f"{name} 0")
    return gymnax_suite.build


def follow(env, action, steps):
    key = jax.random.key(0)

    def turn(state, _):
        step = env.step(key, state, action)
        return step.state, step

    return jax.lax.scan(turn, env.reset(key)[0], length=steps)[1]


def test_the_end_and_the_time(counter):
    env = counter("Counter-v0")
    assert (env.name, env.max_steps, env.actions) == ("gymnax-Counter", 6, Discrete(3))
    assert env.observation_size == 4 and env.version == "gymnax 0"
    ended = follow(env, jnp.int32(1), 5)
    assert ended.terminated.tolist() == [False, False, False, True, True]
    assert not ended.truncated.any()
    late = follow(env, jnp.int32(0), 6)
    assert not late.terminated.any()
    assert late.truncated.tolist() == [False] * 5 + [True]
    np.testing.assert_array_equal(late.reward, np.arange(1, 7, dtype=np.float32))
    assert late.reward.dtype == jnp.float32 and late.observation.shape == (6, 4)


def test_a_time_limit_of_ones_own(counter):
    env = counter("Counter-v0", max_steps=3)
    assert env.max_steps == 3
    assert follow(env, jnp.int32(0), 3).truncated.tolist() == [False, False, True]


def test_boxes_of_any_shape(counter, monkeypatch):
    low = np.array([[-1.0], [0.0]])
    monkeypatch.setattr(Counter, "space", SimpleNamespace(low=low, high=2.0, shape=(2, 1)))
    assert counter("Counter-v0").actions == Box((-1.0, 0.0), (2.0, 2.0))
