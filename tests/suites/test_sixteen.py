"""The paper's tasks through our interface, beside their suites' own loops."""

import dataclasses
import importlib

import jax
import numpy as np
import pytest

from springroll.envs.frames import draw
from springroll.envs.suites import SUITES, environment, known
from springroll.errors import InputError
from springroll.rl.recipes import SIXTEEN
from tests.suites.played import STEPS, check_against_its_suite, check_episode, check_spaces, played

LIMIT = 12
SHORT = {"craftax-Classic-Symbolic", "jumanji-Snake", "navix-DoorKey-8x8", "gymnax-CartPole"}
HERE = [id for id in SIXTEEN if "v1" not in id and "kinetix" not in id]


def options(id):
    """Some have a time limit so low that they meet it."""
    return {"max_steps": LIMIT} if id in SHORT else {}


def test_thirteen_are_here():
    assert len(HERE) == 11  # besides two that are built in and three of Kinetix


@pytest.mark.parametrize("id", [*HERE, "gymnax-CartPole", "gymnax-Pendulum"])
def test_spaces(id):
    check_spaces(id)


@pytest.mark.parametrize("id", HERE)
def test_reset_and_step(id):
    check_episode(id, **options(id))


@pytest.mark.parametrize(
    "id",
    [
        "brax-inverted_double_pendulum",
        "craftax-Classic-Symbolic",
        "gymnax-CartPole",
        "jumanji-Game2048",
        "jumanji-Knapsack",
        "jumanji-Snake",
        "navix-DoorKey-8x8",
    ],
)
def test_an_episode_is_the_suites_own(id):
    check_against_its_suite(id, **options(id))


@pytest.mark.parametrize("id", ["craftax-Classic-Symbolic", "gymnax-CartPole", "navix-DoorKey-8x8"])
def test_time_is_told_from_the_end(id):
    seen = played(environment(id, **options(id)))
    assert np.flatnonzero(seen.truncated)[0] == LIMIT - 1
    assert not seen.terminated[:LIMIT].any()


def test_jumanji_calls_a_snakes_time_its_end():
    seen = played(environment("jumanji-Snake", **options("jumanji-Snake")))
    assert np.flatnonzero(seen.terminated)[0] <= LIMIT - 1 and not seen.truncated.any()


@pytest.mark.parametrize("id", ["jumanji-Game2048", "jumanji-Knapsack", "jumanji-Snake"])
def test_masks_are_what_the_policy_sees(id):
    env = environment(id, **options(id))
    seen = played(env)
    masks = seen.states.mask
    assert masks.shape == (STEPS, env.actions.outputs) and masks.dtype == bool
    over = np.append(False, np.cumsum(seen.terminated)[:-1] > 0)
    assert (masks[np.arange(STEPS), seen.actions] | over).all()
    np.testing.assert_array_equal(masks[1:], seen.observations[:-1, -masks.shape[1] :])


def test_a_full_knapsack_is_the_end():
    """With masked actions nothing invalid is ever put in: the episode ends because nothing fits."""
    seen = played(environment("jumanji-Knapsack"))
    end = int(np.flatnonzero(seen.terminated)[0])
    assert seen.states.mask[: end + 1].any(1).all() and not seen.states.mask[end + 1].any()
    assert (seen.rewards[: end + 1] > 0).all()


def test_navix_integers_are_scaled_and_nothing_to_draw_with_is_carried():
    env = environment("navix-DoorKey-8x8", **options("navix-DoorKey-8x8"))
    seen = played(env)
    cells = seen.observations * 10
    np.testing.assert_allclose(cells, np.round(cells), atol=1e-4)
    assert 5 < cells.max() <= 11
    carried = sum(leaf.nbytes for leaf in jax.tree.leaves(seen.states)) / STEPS
    assert carried < 2000  # bytes; 13,000 with the tiles


def test_snakes_counter_is_a_share():
    env = environment("jumanji-Snake", **options("jumanji-Snake"))
    counter = played(env).observations[:LIMIT, 12 * 12 * 5]
    np.testing.assert_allclose(counter, np.minimum(np.arange(1, LIMIT + 1) / (LIMIT - 1), 1.1))


@pytest.mark.parametrize("id", ["navix-DoorKey-8x8", "jumanji-Game2048"])
def test_pictures(id):
    whole = played(environment(id, **options(id))).states
    states = [jax.tree.map(lambda x, t=t: x[t], whole) for t in range(0, STEPS, 5)]
    frames = draw(environment(id), states)
    assert len(frames) == len(states) and frames[0].ndim == 3 and frames[0].dtype == np.uint8
    assert any((frame != frames[0]).any() for frame in frames[1:])


def test_backends_of_brax_are_told_apart():
    env = environment("brax-inverted_pendulum", backend="spring")
    assert env.version.endswith(" spring") and env is not environment("brax-inverted_pendulum")
    assert dataclasses.replace(env, version="").version == ""


@pytest.mark.parametrize("suite", [suite for suite in SUITES if suite != "kinetix"])
def test_the_table_has_what_the_suite_has(suite):
    """Other versions may have less; what one has more, `tests/golden/make_known.py` adds."""
    names = importlib.import_module(f"springroll.envs.{suite}_suite").names()
    assert set(names) <= {task.name for task in known() if task.suite == suite}
    assert len(names) == len(set(names))


@pytest.mark.parametrize("suite", ["brax", "gymnax", "jumanji", "navix"])
def test_a_task_the_suite_does_not_have(suite):
    with pytest.raises(InputError, match=f"no environment '{suite}-Frobnicate-9'"):
        environment(f"{suite}-Frobnicate-9")
