"""Kinetix' three tasks of the paper; collected where Kinetix is installed."""

import jax
import numpy as np
import pytest

from springroll.envs.suites import environment
from springroll.rl.recipes import SIXTEEN
from tests.suites.played import check_against_its_suite, check_episode, check_spaces

LEVELS = [id for id in SIXTEEN if id.startswith("kinetix")]


@pytest.mark.parametrize("id", LEVELS)
def test_spaces(id):
    check_spaces(id)


@pytest.mark.parametrize("id", LEVELS)
def test_reset_and_step(id):
    check_episode(id, max_steps=12)


def test_an_episode_is_the_suites_own():
    seen = check_against_its_suite("kinetix-s-h1_thrust_over_ball", max_steps=12)
    over = seen.terminated | seen.truncated
    assert over[:12].any()


def test_every_episode_starts_alike():
    env = environment("kinetix-s-h1_thrust_over_ball", max_steps=12)
    first, second = (env.reset(jax.random.key(seed))[1] for seed in (0, 1))
    np.testing.assert_array_equal(first, second)
