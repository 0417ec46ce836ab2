"""PPO on tiny environments: it learns, keeps to the mask, and goes on with the same bytes."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.envs.suites import environment
from springroll.rl.config import PPOSettings, RLConfig, settings_for
from springroll.rl.ppo import ppo, ppo_task
from springroll.rl.ppo_bridge import Bridge
from springroll.run.folder import RunFolder
from springroll.run.loop import run
from tests.rl.toy_episodes import forbidden_choice, throw

SMALL = PPOSettings(
    num_envs=16,
    num_steps=4,
    epochs=2,
    minibatches=4,
    lr=3e-3,
    entropy=0.0,
    normalise_rewards=True,
)


@dataclass(frozen=True, kw_only=True)
class Config(RLConfig):
    normalise: bool = True
    ppo: PPOSettings = field(default_factory=lambda: SMALL)


@pytest.fixture(scope="module")
def chooser():
    """One for all: its programs take seconds to compile."""
    return ppo(forbidden_choice(), SMALL, normalise=True)


def after(method, iterations, seed=0):
    carry, figures = method.init(jax.random.key(seed)), []
    for _ in range(iterations):
        carry, told = method.iterate(carry)
        figures.append({name: float(value) for name, value in told.items()})
    return carry, figures


def test_it_learns_and_never_takes_what_is_forbidden(chooser):
    carry, figures = after(chooser, 20)
    assert all(f["train_return"] <= 1.0 for f in figures)
    assert figures[-1]["train_return"] > 0.9 > figures[0]["train_return"]
    assert [f["episodes"] for f in figures[:3]] == [64, 128, 192]
    outputs = chooser.policy.apply(chooser.params(carry), jnp.ones(2))
    assert outputs.shape == (3,) and outputs[1] > outputs[0]


def test_its_policy_says_what_rejax_acts_by():
    """The mean and deviation equal a slow forward by NumPy, normalised as rejax does."""
    method = ppo(throw(), SMALL, normalise=True)
    params = method.policy.init(jax.random.key(0))
    params |= {"mean": jnp.array([5.0, -7.0]), "var": jnp.array([400.0, 900.0])}
    observation = np.array([20.0, -30.0], np.float32)
    x = (observation - params["mean"]) / np.sqrt(np.asarray(params["var"]) + 1e-8)
    weights = params["actor"]["params"]
    for layer in range(3):
        dense = weights["features"][f"Dense_{layer}"]
        x = np.tanh(x @ np.asarray(dense["kernel"]) + dense["bias"])
    mean = x @ np.asarray(weights["action_mean"]["kernel"]) + weights["action_mean"]["bias"]
    found = method.policy.apply(params, jnp.asarray(observation))
    np.testing.assert_allclose(found, [mean[0], weights["action_log_std"][0]], atol=1e-5)


def test_a_carry_is_arrays_by_name_and_the_same_at_every_call(chooser):
    first, second = chooser.init(jax.random.key(1)), chooser.init(jax.random.key(1))
    assert first.keys() == second.keys() and "obs_rms_state/mean" in first
    assert all(isinstance(leaf, jax.Array) for leaf in first.values())
    assert not any(jax.typeof(leaf).weak_type for leaf in first.values())
    for name in first:
        np.testing.assert_array_equal(_raw(first[name]), _raw(second[name]))
    shapes = {name: (leaf.shape, leaf.dtype) for name, leaf in first.items()}
    after_one = chooser.iterate(first)[0]
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in after_one.items()} == shapes


def _raw(leaf):
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def test_a_run_that_was_stopped_ends_with_the_same_bytes(chooser, tmp_path):
    scores = []

    def validate(params):
        scores.append(float(jnp.sum(params["mean"])))
        return {"eval_return": scores[-1]}

    def trained(name, *generations):
        result = where = None
        for index, count in enumerate(generations):
            config = Config(out=str(tmp_path / name), generations=count, seed=3)
            task = ppo_task(config, forbidden_choice(), validate, method=chooser)
            where = RunFolder.resume(config.out) if index else RunFolder.create(config.out, config)
            result = run(config, task, where)
        assert result is not None and where is not None
        return result, (where.checkpoints / "000000004.safetensors").read_bytes()

    whole, bytes_of_whole = trained("whole", 4)
    parts, bytes_of_parts = trained("parts", 1, 3, 4)
    assert bytes_of_parts == bytes_of_whole
    assert whole.generation == parts.generation == 4
    assert whole.summary["env_steps"] == parts.summary["env_steps"] == 4 * SMALL.steps
    assert len(scores) >= 4 and "eval_return" in whole.summary
    assert ppo_task(Config(), throw(), method=chooser).identity == {"environment": "toy 1"}


@pytest.mark.parametrize("id", ["jumanji-Knapsack", "navix-DoorKey-8x8"])
def test_it_can_be_made_on_a_suite(id):
    """Its policy says what a head expects, where actions are masked and where not."""
    env = environment(id)
    method = ppo(env, settings_for(id))
    params = jax.eval_shape(method.policy.init, jax.random.key(0))
    seen = jax.ShapeDtypeStruct((env.observation_size,), jnp.float32)
    says = jax.eval_shape(method.policy.apply, params, seen)
    assert says.shape == (env.actions.outputs,) and says.dtype == jnp.float32


def test_spaces_are_gymnaxs_with_the_mask_behind_the_observation():
    masked, real = Bridge(forbidden_choice()), Bridge(throw())
    assert masked.observation_space(None).shape == (5,) and masked.action_space(None).n == 3
    assert real.observation_space(None).shape == (2,)
    assert (real.action_space(None).low, real.action_space(None).high) == (-1.0, 1.0)
