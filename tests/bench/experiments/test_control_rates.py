"""The rates in control, at the smallest size; evosax is stood in for by ten lines."""

import sys
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench import evosax_rate, reference_rate
from bench.evosax_rate import (
    Way,
    compared,
    endless,
    episode,
    evosax_way,
    in_turns,
    rates,
)
from springroll.envs.environment import Discrete, Environment, Step
from springroll.envs.suites import environment
from springroll.errors import InputError
from springroll.models.policy import PolicyNetwork

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {"width": 8, "layers": 1}


class OpenES:
    """Moves to the best member."""

    default_params = None

    def __init__(self, population_size, solution, optimizer, std_schedule):
        self.half, self.sigma = population_size // 2, std_schedule(0)

    def init(self, key, solution, params):
        return solution

    def ask(self, key, state, params):
        noise = lambda x: jax.random.normal(key, (self.half, *x.shape))
        both = lambda x: x[None] + 10.0 * self.sigma * jnp.concatenate([noise(x), -noise(x)])
        return jax.tree.map(both, state), state

    def tell(self, key, population, fitness, state, params):
        """Lower is better."""
        best = jnp.argmin(fitness)
        return jax.tree.map(lambda x: x[best], population), {}

    def get_mean(self, state):
        return state


@pytest.fixture
def evosax(monkeypatch):
    package = ModuleType("evosax.algorithms")
    vars(package)["Open_ES"] = OpenES
    monkeypatch.setitem(sys.modules, "evosax", ModuleType("evosax"))
    monkeypatch.setitem(sys.modules, "evosax.algorithms", package)


def right_is_better():
    """Six steps; each is worth the action."""
    reset = lambda key: (jnp.int32(0), jnp.ones(2))

    def step(key, state, action):
        reward = action.astype(jnp.float32)
        return Step(state + 1, jnp.ones(2), reward, state >= 5, jnp.bool_(False))

    return Environment("right", 2, Discrete(2), 9, reset, step)


@pytest.mark.parametrize("form", ["vmap", "each"])
def test_returns_are_handed_over_as_losses(evosax, form):
    policy = PolicyNetwork(2, 2, **SMALL)
    way = evosax_way(policy, right_is_better(), 8, form)
    state = way.init()
    for number in range(8):
        state = way.generation(number, state)
    outputs = policy.apply(way.centre(state), jnp.ones(2))
    assert outputs[1] - outputs[0] > 1


def test_an_episode_ends_when_it_is_over():
    policy = PolicyNetwork(2, 2, **SMALL)
    weights = policy.init(jax.random.key(0)) | {"head_bias": jnp.array([-50.0, 50.0])}
    run = lambda task: float(episode(policy, task, weights, jax.random.key(1)))
    assert run(right_is_better()) == 6.0
    assert run(endless(right_is_better())) == 9.0


def test_without_early_ends_all_else_is_the_same():
    task = environment("CartPole-v1", max_steps=5)
    state, _ = task.reset(jax.random.key(0))
    state = state.at[0].set(99.0)
    found, same = (
        each.step(jax.random.key(1), state, jnp.int32(1)) for each in (task, endless(task))
    )
    assert found.terminated and not same.terminated
    np.testing.assert_array_equal(found.observation, same.observation)


def test_ways_have_turns_and_the_same_seconds(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(evosax_rate.time, "perf_counter", lambda: clock[0])

    def way(name, seconds):
        def generation(number, state):
            clock[0] += seconds
            order.append(name)
            return state + 1

        return Way(lambda: 0, generation, lambda state: state)

    found = in_turns({"quick": way("quick", 1.0), "slow": way("slow", 4.0)}, 8.0)
    assert found == {"quick": (8, 8), "slow": (2, 2)}
    assert order[2:] == ["quick"] * 3 + ["slow"] + ["quick"] * 3 + ["slow"] + ["quick"] * 2


def test_rates_are_steps_by_seconds():
    way = Way(lambda: 0, lambda number, state: jnp.zeros(()), lambda state: state)
    found = rates({"a": way, "b": way}, 100, 2)
    assert set(found) == {"a", "b"} and min(found.values()) > 0


def test_the_record_beside_evosax(evosax):
    found = compared(4, 0.1, 1, max_steps=4, **SMALL)
    assert found["pop_size"] == 4 and found["ratio"] > 0
    assert set(found["returns"]) == {"eggroll", "eggroll_float32", "evosax_vmap", "evosax_each"}
    assert max(found["returns"].values()) <= 4


def test_the_record_beside_the_reference():
    found = reference_rate.run(1, pop_size=4, steps=3, repeats=1, **SMALL)
    assert found["baseline"] == 2327 and found["ratio"] == pytest.approx(found["ours"] / 2327, 1e-2)
    assert found["steps_per_second"] == pytest.approx(3 * found["ours"], 1e-2)
    assert "float32_generation" in found["rates"]


def test_without_evosax_there_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "evosax", None)
    monkeypatch.setitem(sys.modules, "evosax.algorithms", None)
    with pytest.raises(InputError, match="needs the package 'evosax': pip install"):
        evosax_way(PolicyNetwork(2, 2, **SMALL), right_is_better(), 4, "vmap")
