"""The real gymnasium: an episode in the pool is an episode of its own loop."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench import gymnasium_pool
from springroll.envs.action_choice import choose
from springroll.envs.gymnasium_pool import open_gymnasium
from springroll.errors import InputError
from springroll.models.policy import Policy


@pytest.mark.parametrize(("id", "steps"), [("CartPole-v1", 500), ("Pendulum-v1", 200)])
def test_returns_are_those_of_its_own_loop(id, steps):
    pool = open_gymnasium(f"gymnasium-{id}", workers=1)
    assert pool.max_steps == steps and pool.version == f"gymnasium {gymnasium.__version__}"
    shape = (pool.observation_size, pool.actions.outputs)
    params = jax.random.normal(jax.random.key(0), shape) * 0.1
    policy = Policy(lambda key: params, lambda params, x: x @ params)
    found = pool.unperturbed(policy, params, np.arange(3), deterministic=False)
    pool.close()
    draw = jax.jit(lambda x, key: choose(pool.actions, x @ params, key))
    for seed in range(3):
        environment = gymnasium.make(id)
        observation, _ = environment.reset(seed=seed)
        total, over, time = 0.0, False, 0
        while not over:
            key = jax.random.fold_in(jax.random.key(seed), time)
            action = np.asarray(draw(jnp.asarray(observation, jnp.float32), key))
            action = int(action) if pool.actions.outputs == 2 and not action.ndim else action
            observation, reward, terminated, truncated, _ = environment.step(action)
            total, over, time = total + float(reward), terminated or truncated, time + 1
        np.testing.assert_allclose(found[seed], total, rtol=1e-4)


def test_an_unknown_id_names_the_nearest():
    with pytest.raises(InputError, match="nearest: gymnasium-CartPole-v1") as error:
        open_gymnasium("gymnasium-CartPool-v1", workers=1)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_bench_runs_all_it_compares():
    found = gymnasium_pool.run("CartPole-v1", pop_size=4, workers=1, repeats=1)
    for name in ("ours", "baseline", "no_policy", "vector"):
        assert found[name] > 0
    assert found["environment"] == "CartPole-v1" and found["ratio"] > 0
