"""The rate of environments, bare and under a population, in small."""

import jax
import numpy as np
import pytest

from bench import environment_rate
from bench.environment_rate import Size, bare, run, table
from bench.evosax_rate import endless
from springroll.envs.suites import environment
from springroll.rl.recipes import SIXTEEN

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def result():
    return run("CartPole-v1", Size(members=4, steps=3), repeats=1, width=8, layers=1)


def test_figures(result):
    assert result["env"] == "CartPole-v1" and (result["members"], result["steps"]) == (4, 3)
    assert result["ratio"] == pytest.approx(result["ours"] / result["baseline"], rel=1e-2)
    assert min(result["eggroll_seconds"], result["openes_seconds"]) > 0


def test_table(result):
    head, rule, row = table([result]).splitlines()
    assert head.count("|") == rule.count("|") == row.count("|")
    assert row.startswith("| CartPole-v1 | ") and row.endswith("| 4 x 3 |")


def test_bare_steps_are_all_taken_and_all_observed():
    task = endless(environment("CartPole-v1", max_steps=5))
    rewards, seen = bare(task, 3, 100, jax.random.key(0))
    np.testing.assert_array_equal(rewards, 100.0)  # one per step, ends ignored
    assert seen.shape == (3,) and np.isfinite(seen).all()


def test_sizes_are_of_the_papers_tasks():
    assert set(environment_rate.SMALLER) <= set(SIXTEEN)
    assert all(size.members % 2 == 0 for size in environment_rate.SMALLER.values())
