"""Episodes through our interface, and their comparison with the suite's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from springroll.envs.environment import Environment
from springroll.envs.suite_calls import foreign
from springroll.envs.suites import environment, known
from tests.envs.episodes_of import Played, play, step_key
from tests.suites import suites_alone
from tests.suites.suites_alone import compiled

KEY = jax.random.key(1)
STEPS = 32


@functools.cache
def played(env: Environment, steps: int = STEPS) -> Played:
    """One episode, on the host."""
    run = compiled(lambda key: play(env, key, steps), KEY)
    return jax.tree.map(np.asarray, run(KEY))


def check_spaces(id: str) -> None:
    """The table that is shown where the suite is not installed says what is so."""
    env = environment(id)
    task = next(task for task in known() if task.id == id)
    assert (env.name, env.observation_size) == (id, task.observation_size)
    assert (str(env.actions), env.max_steps) == (task.actions, task.max_steps)
    assert env.version.split()[0].startswith(task.suite) and env.version.split()[1][0].isdigit()


def check_episode(id: str, **options: int) -> None:
    """Finite numbers, shapes as announced (asserted while tracing), observations that change."""
    seen = played(environment(id, **options))
    assert np.isfinite(seen.observations).all() and np.isfinite(seen.rewards).all()
    assert (seen.observations != seen.observations[0]).any()
    assert not (seen.terminated & seen.truncated).any()


def check_against_its_suite(id: str, **options: int) -> Played:
    """Rewards, observations and the end are those of the suite's own loop; the return is too."""
    env, task = environment(id, **options), next(task for task in known() if task.id == id)
    ours = played(env)
    keys = [jax.random.split(step_key(KEY, time))[1] for time in range(STEPS)]
    alone = foreign(lambda *args: list(getattr(suites_alone, task.suite)(*args)))
    rows = alone(task.name, options, KEY, jnp.asarray(ours.actions), keys)
    total = our_total = 0.0
    for time, (observation, reward, done) in enumerate(rows):
        if observation is not None:
            seen = ours.observations[time]
            np.testing.assert_allclose(seen, np.ravel(observation), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(ours.rewards[time], reward, rtol=1e-4, atol=1e-5)
        total, our_total = total + float(reward), our_total + float(ours.rewards[time])
        over = ours.terminated[time] | ours.truncated[time] | (time + 1 >= env.max_steps)
        assert bool(done) == over, time
        if over:
            break
    np.testing.assert_allclose(our_total, total, rtol=1e-4, atol=1e-4)
    return ours
