"""Grid-5x5: walk to the goal. The smallest task with a reward that is hardly ever there."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from springroll.envs.environment import Discrete, Environment, Step

SIDE = 5
CELLS = SIDE * SIDE
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # (row, column): up, right, down, left


def grid(max_steps: int = 16) -> Environment:
    """Reward 1 on reaching the goal, which ends the episode; 0 before, and 0 when time is up.

    Walker and goal start in two different cells, all pairs alike likely; the farthest are 8 steps
    apart. The state is the number of either's cell, row by row; the observation says for each of
    the 25 cells whether the walker is there, then the same of the goal. Actions: up, right, down,
    left; a step into the wall leads nowhere.
    """
    return Environment(
        name="Grid-5x5",
        observation_size=2 * CELLS,
        actions=Discrete(len(MOVES)),
        max_steps=max_steps,
        reset=_reset,
        step=_step,
        frame=_frame,
        version="springroll 1",
    )


def _reset(key: Array) -> tuple[Array, Array]:
    walker, ahead = jax.random.randint(key, (2,), 0, jnp.array([CELLS, CELLS - 1]))
    state = jnp.stack([walker, (walker + 1 + ahead) % CELLS])
    return state, _observation(state)


def _step(key: Array, state: Array, action: Array) -> Step:
    walker, goal = state
    cell = jnp.stack([walker // SIDE, walker % SIDE])
    row, column = jnp.clip(cell + jnp.array(MOVES)[action], 0, SIDE - 1)
    after = jnp.stack([row * SIDE + column, goal])
    reached = after[0] == goal
    return Step(after, _observation(after), jnp.float32(reached), reached, jnp.bool_(False))


def _observation(state: Array) -> Array:
    return jax.nn.one_hot(state, CELLS).ravel()


def _frame(state: Array) -> np.ndarray:
    """A white floor, the goal green, the walker red."""
    cells = np.full((CELLS, 3), 255, np.uint8)
    walker, goal = np.asarray(state)
    cells[goal] = (60, 180, 75)
    cells[walker] = (200, 60, 50)
    large = cells.reshape(SIDE, SIDE, 3).repeat(32, 0).repeat(32, 1)
    large[::32] = large[:, ::32] = 200  # the lines between the cells
    return large
