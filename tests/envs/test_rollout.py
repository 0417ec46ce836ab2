"""Episodes of populations against a plain loop over one episode, and what they do not depend on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from springroll.envs.action_choice import choose
from springroll.envs.environment import Actions, Box, Discrete, Environment, Step
from springroll.envs.observation_scaling import fresh
from springroll.envs.rollout import (
    Rollout,
    episode_keys,
    population_episodes,
    record_episode,
    step_keys,
    unperturbed_episodes,
)
from springroll.evolve.eggroll import eggroll, open_es
from springroll.models.policy import PolicyNetwork
from springroll.thin.factored_array import Factored

N, EPISODES, MOST = 6, 2, 9


TWO = Discrete(2)


def drift(actions: Actions = TWO, ends=True):
    """A point that drifts at random and is pushed; it ends outside of [-1, 1]."""

    def reset(key):
        at = jax.random.uniform(key, (2,), minval=-0.5, maxval=0.5)
        return at, at

    def step(key, at, action):
        push = action.astype(jnp.float32) - 0.5 if isinstance(actions, Discrete) else action
        at = at + 0.4 * push + 0.2 * jax.random.normal(key, (2,))
        out = jnp.abs(at).max() > 1.0
        return Step(at, at, 1.0 + at[0], out & ends, jnp.bool_(False))

    return Environment("drift", 2, actions, MOST, reset, step)


DRIFT = drift()
NETWORK = PolicyNetwork(2, 2, width=8, layers=1)
ROLLOUT = Rollout(NETWORK, DRIFT, block=4, segment=3)


@functools.cache
def population(kind="eggroll", rank=1, network=NETWORK):
    make = open_es if kind == "openes" else functools.partial(eggroll, rank=rank)
    es = make(pop_size=N, sigma=0.5, optimizer=optax.sgd(0.1))
    state = es.init(jax.random.key(1), network.init(jax.random.key(2)))
    return state.params, es.ask(state)


def keys(seed=3, count=N):
    return episode_keys(jax.random.key(seed), count, EPISODES)


@functools.cache
def stepper(rollout):
    """One step of one episode, compiled."""
    environment = rollout.environment

    @jax.jit
    def step(params, key, time, state, observation):
        drawn, moved = step_keys(key, time)
        outputs = rollout.policy.apply(params, observation)
        to_draw = None if rollout.deterministic else drawn
        return environment.step(moved, state, choose(environment.actions, outputs, to_draw))

    return step


def one_by_one(rollout, params, key, scaling=None):
    """An episode by the obvious loop: (return, length, observations)."""
    environment, step = rollout.environment, stepper(rollout)
    first, _ = jax.random.split(jax.random.wrap_key_data(key))
    state, observation = environment.reset(first)
    total, seen = 0.0, []
    for time in range(environment.max_steps):
        seen.append(np.asarray(observation))
        scaled = observation if scaling is None else scaling.apply(observation)
        found = step(params, key, time, state, scaled)
        state, observation = found.state, found.observation
        total += float(found.reward)
        if found.terminated or found.truncated:
            break
    return total, len(seen), np.array(seen)


def weights_of(params, members, member):
    """The weights of one member, formed."""
    pair, sign = divmod(member, 2)
    factors = {path: tuple(x[pair] for x in group) for path, group in members.drawn().items()}
    gain = jnp.float32(members.perturbation.signs[sign])
    attached = members.perturbation.attach(params, factors, gain, members.sigma)
    thin = lambda x: isinstance(x, Factored)
    return jax.tree.map(lambda x: x.dense() if thin(x) else x, attached, is_leaf=thin)


@pytest.mark.parametrize(
    ("kind", "rank"),
    [("eggroll", 1), pytest.param("eggroll", 2, marks=pytest.mark.slow), ("openes", 1)],
)
def test_members_of_a_population_are_members_alone(kind, rank):
    params, members = population(kind, rank)
    found = population_episodes(ROLLOUT, params, members, keys())
    assert found.returns.shape == found.lengths.shape == (N, EPISODES)
    assert len(set(np.asarray(found.lengths).ravel().tolist())) > 2  # they end at different times
    for member in range(N):
        weights = weights_of(params, members, member)
        for episode in range(EPISODES):
            total, length, _ = one_by_one(ROLLOUT, weights, keys()[member, episode])
            assert int(found.lengths[member, episode]) == length
            np.testing.assert_allclose(found.returns[member, episode], total, rtol=1e-5)


@pytest.mark.parametrize("deterministic", [False, True])
def test_unperturbed_episodes_are_a_plain_loop(deterministic):
    params, _ = population()
    rollout = dataclasses.replace(ROLLOUT, deterministic=deterministic)
    some = keys().reshape(-1, 2)[:3]
    found = unperturbed_episodes(rollout, params, some)
    expected = [one_by_one(rollout, params, key) for key in some]
    np.testing.assert_allclose(found.returns, [total for total, _, _ in expected], rtol=1e-5)
    np.testing.assert_array_equal(found.lengths, [length for _, length, _ in expected])


def test_members_of_sigma_zero_are_unperturbed():
    params, members = population()
    still = dataclasses.replace(members, sigma=jnp.float32(0.0))
    found = population_episodes(ROLLOUT, params, still, keys())
    expected = unperturbed_episodes(ROLLOUT, params, keys().reshape(-1, 2))
    np.testing.assert_array_equal(found.lengths.reshape(-1), expected.lengths)
    np.testing.assert_allclose(found.returns.reshape(-1), expected.returns, rtol=1e-5)


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({"block": 1}, marks=pytest.mark.slow),
        pytest.param({"block": 3, "segment": 1}, marks=pytest.mark.slow),
        {"block": 100, "segment": 100},
        {"devices": 1},
    ],
)
def test_blocks_segments_and_devices_do_not_matter(how):
    params, members = population()
    usual = population_episodes(ROLLOUT, params, members, keys())
    found = population_episodes(dataclasses.replace(ROLLOUT, **how), params, members, keys())
    np.testing.assert_array_equal(found.lengths, usual.lengths)
    np.testing.assert_allclose(found.returns, usual.returns, rtol=1e-6)


def test_a_pair_that_shares_a_key_meets_the_same_start():
    params, members = population()
    still = dataclasses.replace(members, sigma=jnp.float32(0.0))
    shared = jnp.repeat(keys(count=N // 2), 2, axis=0)
    found = population_episodes(ROLLOUT, params, still, shared)
    np.testing.assert_array_equal(found.returns[::2], found.returns[1::2])


def test_only_the_first_rows_are_run():
    params, members = population()
    whole = population_episodes(ROLLOUT, params, members, keys())
    found = population_episodes(ROLLOUT, params, members, keys(), None, 5, False)
    flat, all_flat = (np.asarray(x.returns).reshape(-1) for x in (found, whole))
    np.testing.assert_array_equal(flat[:5], all_flat[:5])
    assert not flat[5:].any() and not np.asarray(found.lengths).reshape(-1)[5:].any()


def test_any_actions_do_not_listen_to_the_policy():
    params, members = population()
    other = jax.tree.map(lambda x: -2 * x, params)
    run = lambda params, uniform: population_episodes(
        ROLLOUT, params, members, keys(), None, N * EPISODES, uniform
    )
    deaf = run(params, True)
    np.testing.assert_array_equal(deaf.returns, run(other, True).returns)
    heard = run(params, False)
    assert (np.asarray(heard.returns) != np.asarray(deaf.returns)).any()
    assert (np.asarray(heard.returns) != np.asarray(run(other, False).returns)).any()


def test_episodes_end_at_the_limit():
    rollout = Rollout(NETWORK, drift(ends=False), block=4, segment=4)
    params, members = population()
    found = population_episodes(rollout, params, members, keys())
    assert (np.asarray(found.lengths) == MOST).all()


def test_observations_are_summed_up_while_an_episode_lives():
    params, members = population()
    rollout = dataclasses.replace(ROLLOUT, counting=True)
    scaling = fresh(2)._replace(mean=jnp.array([0.1, -0.2]), steps=jnp.float32(10.0))
    found = population_episodes(rollout, params, members, keys(), scaling)
    weights = weights_of(params, members, 4)
    _, _, seen = one_by_one(rollout, weights, keys()[4, 1], scaling)
    seen = seen - np.asarray(scaling.mean)
    expected = np.stack([seen.sum(0), (seen**2).sum(0)])
    np.testing.assert_allclose(found.sums[4, 1], expected, rtol=1e-4, atol=1e-5)


def test_real_actions_and_sixteen_bits():
    environment = drift(Box((-1.0, -1.0), (1.0, 1.0)))
    network = PolicyNetwork(2, 4, deviations=2, width=8, layers=1, compute="bfloat16")
    params, members = population(network=network)
    rollout = Rollout(network, environment, block=4, segment=3)
    found = population_episodes(rollout, params, members, keys())
    assert np.isfinite(found.returns).all()
    unperturbed = unperturbed_episodes(rollout, params, keys()[0])
    expected = [one_by_one(rollout, params, key)[0] for key in keys()[0]]
    np.testing.assert_allclose(unperturbed.returns, expected, rtol=1e-4)


def test_no_weight_is_formed_per_row():
    network = PolicyNetwork(2, 2, width=48, layers=1)
    params, members = jax.eval_shape(lambda: population.__wrapped__(network=network))
    rollout = Rollout(network, DRIFT, block=4, segment=3)
    lowered = population_episodes.lower(  # type: ignore[attr-defined]
        rollout, params, members, keys()
    )
    assert "x48x48xf32" not in lowered.as_text()


def test_a_recorded_episode_has_a_state_more_than_steps():
    params, _ = population()
    states, total = record_episode(ROLLOUT, params, jax.random.key(5))
    assert 2 <= len(states) <= MOST + 1
    rewards = [1.0 + state[0] for state in states[1:]]
    np.testing.assert_allclose(total, sum(rewards), rtol=1e-5)
    assert len(record_episode(ROLLOUT, params, jax.random.key(5), most=1)[0]) == 2
