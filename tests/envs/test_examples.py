"""The examples do what they say, and can be learnt."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import jax
import numpy as np
import optax

import springroll as sr
from springroll.envs.objective import open_objective
from springroll.envs.python_calls import pair_seeds

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name):
    spec = spec_from_file_location(f"_example_{name}", EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    sys.modules[spec.name] = module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_cache_counts_what_it_serves():
    cache = example("cache_eviction")
    mean = lambda score: np.mean([score(seed) for seed in range(3)])
    usual = mean(cache.least_recently_used)
    first = mean(lambda seed: cache.hit_rate(cache.initial_weights(0), seed))
    assert 36 < usual < 42 and usual < first < 47  # a docstring tells these
    keys = [1, 2, 1, 3, 1] * 10  # all of which fit
    assert cache.served(keys, None) == 100 * (50 - 3) / 50
    row = list(range(cache.CAPACITY + 1)) * 2  # oldest first throws out just what comes next
    assert cache.served(row, lambda ages, uses, stays: -ages) == 0
    assert cache.served(row, lambda ages, uses, stays: ages) > 40


def test_the_lander_lands():
    environment = example("gymnasium_environment").lander()

    def flown(act):
        observation, _ = environment.reset(seed=3)
        total, over = 0.0, False
        for _ in range(environment.max_steps):
            observation, reward, over, _, _ = environment.step(act(*observation))
            total += reward
            if over:
                break
        return total, over

    total, over = flown(lambda height, speed, fuel: int(10 * speed < -1 - 8 * height))
    assert over and total > 85
    total, over = flown(lambda height, speed, fuel: 0)
    assert over and total < 20
    total, over = flown(lambda height, speed, fuel: 1)
    assert not over and environment.fuel < 0.01


def test_the_program_is_asked_and_learnt():
    objective = open_objective(f"{EXAMPLES / 'external_process.py'}:comfort", workers=2)
    strategy = sr.eggroll(pop_size=16, sigma=0.1, optimizer=optax.adam(0.1))
    state = strategy.init(jax.random.key(0), objective.initial(0))
    first = objective.unperturbed(state.params, range(8)).mean()
    for generation in range(15):
        members = strategy.ask(state)
        seeds = pair_seeds(0, generation, 16, 2, 1)
        fitness, _ = objective.evaluate(state.params, members, seeds)
        state, _ = strategy.tell(state, members, jax.numpy.asarray(fitness))
    last = objective.unperturbed(state.params, range(8)).mean()
    objective.close()
    assert first < -3.5 and last > -1.6
