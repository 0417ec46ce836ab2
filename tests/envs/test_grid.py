"""The small grid world is what its docstring says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.envs.grid import CELLS, SIDE, grid
from tests.envs.episodes_of import play

ENV = grid()
KEY = jax.random.key(0)


def at(row: int, column: int, goal: int):
    return jnp.array([row * SIDE + column, goal])


@pytest.mark.parametrize(
    "action, row, column",
    [(0, 1, 2), (1, 2, 3), (2, 3, 2), (3, 2, 1)],
    ids="up right down left".split(),
)
def test_moves(action, row, column):
    step = ENV.step(KEY, at(2, 2, 0), jnp.int32(action))
    assert step.state[0] == row * SIDE + column
    assert step.reward == 0 and not step.terminated and not step.truncated


@pytest.mark.parametrize("action, row, column", [(0, 0, 2), (1, 2, 4), (2, 4, 2), (3, 2, 0)])
def test_a_wall_stops(action, row, column):
    assert ENV.step(KEY, at(row, column, 12), jnp.int32(action)).state[0] == row * SIDE + column


def test_the_goal_pays_once_and_ends():
    step = ENV.step(KEY, at(2, 2, 13), jnp.int32(1))
    assert step.reward == 1 and step.terminated and not step.truncated


def test_the_observation_says_where_both_are():
    _, seen = ENV.reset(KEY)
    assert seen.shape == (2 * CELLS,) and seen.dtype == jnp.float32
    observation = ENV.step(KEY, at(0, 0, 24), jnp.int32(1)).observation
    assert np.flatnonzero(observation).tolist() == [1, CELLS + 24]


def test_every_pair_of_cells_is_a_start():
    states, _ = jax.vmap(ENV.reset)(jax.random.split(KEY, 20000))
    walker, goal = np.asarray(states).T
    assert (walker != goal).all()
    counts = np.bincount(walker * CELLS + goal, minlength=CELLS**2)
    assert (counts > 0).sum() == CELLS * (CELLS - 1) and counts.max() < 4 * counts.mean()


def test_going_straight_there_always_arrives():
    def straight(key):
        def turn(carry, _):
            state, paid = carry
            (row, column), (down, right) = (divmod(state[i], SIDE) for i in (0, 1))
            sideways = jnp.where(right > column, 1, 3)
            action = jnp.where(down == row, sideways, jnp.where(down > row, 2, 0))
            step = ENV.step(key, state, action)
            return (step.state, paid | step.terminated), None

        first = ENV.reset(key)[0], jnp.bool_(False)
        return jax.lax.scan(turn, first, length=8)[0][1]

    assert jax.jit(jax.vmap(straight))(jax.random.split(KEY, 500)).all()


def test_mapped_is_one_by_one():
    keys = jax.random.split(KEY, 3)
    one = jax.jit(lambda key: play(ENV, key, ENV.max_steps))
    together = jax.jit(jax.vmap(one))(keys)
    for i, key in enumerate(keys):
        alone = one(key)
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_array_equal(a[i], b)


def test_picture():
    assert ENV.frame
    picture = ENV.frame(np.array([0, 24]))
    red, green = picture[10, 10].astype(int), picture[-10, -10].astype(int)
    assert picture.shape == (160, 160, 3)
    assert red[0] > red[1] and green[1] > green[0]
