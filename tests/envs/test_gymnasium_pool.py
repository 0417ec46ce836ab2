"""Environments in processes: every member's episodes are its own, and so are its failures."""

import os
import re
import signal
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import springroll as sr
from springroll.envs import gymnasium_lockstep
from springroll.envs.action_choice import choose
from springroll.envs.environment import Box, Discrete
from springroll.envs.gymnasium_actor import Acting, Actor, acting_for, seats_for
from springroll.envs.gymnasium_pool import open_gymnasium
from springroll.envs.gymnasium_worker import Slots, maker
from springroll.envs.objective import member_weights
from springroll.envs.observation_scaling import Scaling
from springroll.envs.python_calls import pair_seeds
from springroll.errors import InputError
from springroll.models.policy import Policy
from springroll.worker import IDLE, Progress
from tests.envs import gymnasium_environments as environments

HERE = Path(__file__).with_name("gymnasium_environments.py")
POP, EPISODES = 12, 3
SEEDS = pair_seeds(1, 0, POP, 2, EPISODES)
LINEAR = Policy(
    lambda key: {"w": jax.random.normal(key, (2, 2)), "b": jnp.zeros(2)},
    lambda params, x: x @ params["w"] + params["b"],
)


def opened(function, **options):
    return open_gymnasium(f"{HERE}:{function}", **({"workers": 2, "timeout": 20.0} | options))


@pytest.fixture(scope="module")
def walk():
    pool = opened("walk")
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def bad():
    """Environments that fail as the seeds of their episodes say; a few at once."""
    pool = opened("misbehaving", timeout=2.0)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def state():
    return STRATEGY.init(jax.random.key(0), LINEAR.init(jax.random.key(1)))


STRATEGY = sr.eggroll(pop_size=POP, sigma=0.5, rank=1)


@pytest.fixture(scope="module")
def members(state):
    return STRATEGY.ask(state)


@jax.jit
def drawn_action(outputs, seed, time):
    return choose(Discrete(2), outputs, jax.random.fold_in(jax.random.key(seed), time))


def alone(params, seed, deterministic=False, scaling=None, max_steps=40):
    """One episode, by hand: its return, its length, and the observations that were acted on."""
    environment = environments.Walk()
    observation, _ = environment.reset(seed=seed)
    total, seen = 0.0, []
    for time in range(max_steps):
        seen.append(np.asarray(observation, np.float32))
        x = seen[-1] if scaling is None else np.asarray(scaling.apply(jnp.asarray(seen[-1])))
        outputs = x @ params["w"] + params["b"]
        action = np.argmax(outputs) if deterministic else drawn_action(outputs, seed, time)
        observation, reward, over, _, _ = environment.step(int(action))
        total += reward
        if over:
            break
    return total, len(seen), seen


def weights_of(state, members, member):
    ((_, leaves),) = member_weights(state.params, members)
    return {"b": leaves[0][member], "w": leaves[1][member]}


def test_members_in_a_population_are_members_alone(walk, state, members):
    found = walk.episodes(Acting(LINEAR.apply, walk.actions), state.params, members, SEEDS)
    for member in (0, 1, 7):
        weights = weights_of(state, members, member)
        for episode in range(EPISODES):
            total, length, _ = alone(weights, int(SEEDS[member, episode]))
            np.testing.assert_allclose(found.returns[member, episode], total, rtol=1e-5)
            assert found.lengths[member, episode] == length
    assert found.lengths.max() == 40 and found.lengths.min() < 10 and not found.failures.total
    fitness, figures = walk.evaluate(LINEAR, state.params, members, SEEDS)
    np.testing.assert_array_equal(fitness, found.returns.mean(axis=1))
    assert fitness.dtype == np.float32 and figures["env_steps"] == found.lengths.sum()
    assert figures["unscored"] == 0 and walk.failures.counts == {} and walk.failures.line == ""
    np.testing.assert_allclose(figures["train_return"], found.returns.mean(), rtol=1e-6)
    assert (walk.observation_size, walk.actions, walk.max_steps) == (2, Discrete(2), 40)


@pytest.mark.parametrize(("workers", "seats"), [(1, 512), (3, 9)])
def test_how_many_processes_and_seats_changes_nothing(walk, state, members, workers, seats):
    pool = opened("walk", workers=workers, seats=seats)
    expected, figures = walk.evaluate(LINEAR, state.params, members, SEEDS)
    found, same = pool.evaluate(LINEAR, state.params, members, SEEDS)
    np.testing.assert_array_equal(found, expected)
    assert figures == same
    pool.close()


def test_the_centre_and_any_actions(walk, state):
    params = jax.tree.map(np.asarray, state.params)
    found = walk.unperturbed(LINEAR, state.params, np.arange(4))
    np.testing.assert_allclose(found, [alone(params, s, True)[0] for s in range(4)], rtol=1e-5)
    drawn = walk.unperturbed(LINEAR, state.params, np.arange(4), deterministic=False)
    np.testing.assert_allclose(drawn, [alone(params, s)[0] for s in range(4)], rtol=1e-5)
    never = jax.tree.map(lambda x: x + jnp.nan, state.params)
    anyhow = walk.unperturbed(LINEAR, never, np.arange(4), uniform=True)
    assert np.isfinite(anyhow).all() and not np.allclose(anyhow, drawn)


def test_weights_are_made_ready_once(walk, state):
    made = []

    class Doubling:
        apply = staticmethod(LINEAR.apply)

        def ready(self, params):
            made.append(params)
            return jax.tree.map(lambda x: 2 * x, params)

    found = walk.unperturbed(Doubling(), state.params, np.arange(4), deterministic=False)
    twice = jax.tree.map(lambda x: 2 * x, state.params)
    expected = walk.unperturbed(LINEAR, twice, np.arange(4), deterministic=False)
    np.testing.assert_array_equal(found, expected)
    assert len(made) == 1 and acting_for(LINEAR, walk.actions) == acting_for(LINEAR, walk.actions)


def test_observations_are_scaled_and_summed(walk, state, members):
    scaling = Scaling(jnp.float32(9), jnp.array([0.5, -0.25]), jnp.array([4.0, 2.0]))
    acting = Acting(LINEAR.apply, walk.actions, deterministic=True)
    options = {"scaling": scaling, "counting": True}
    found = walk.episodes(acting, state.params, members, SEEDS, **options)
    total, length, seen = alone(weights_of(state, members, 3), int(SEEDS[3, 1]), True, scaling)
    np.testing.assert_allclose(found.returns[3, 1], total, rtol=1e-5)
    apart = np.stack(seen) - np.asarray(scaling.mean)
    expected = np.stack([apart.sum(axis=0), np.square(apart).sum(axis=0)])
    np.testing.assert_allclose(found.sums[3, 1], expected, rtol=1e-4)
    assert found.sums.shape == (POP, EPISODES, 2, 2) and found.lengths[3, 1] == length


def test_real_actions_and_observations_in_parts(state):
    pool = opened("reaching", workers=1)
    assert pool.actions == Box((-1.0, -2.0), (1.0, 2.0)) and pool.max_steps == 4
    assert pool.observation_size == 7
    say = lambda value: Policy(lambda key: {}, lambda params, x: jnp.full(4, value))
    found = pool.unperturbed(say(0.5), {}, np.arange(2))
    np.testing.assert_allclose(found, [-4 * (0.25 + 1.0)] * 2)
    np.testing.assert_allclose(pool.unperturbed(say(7.0), {}, np.arange(1)), [-4 * (1.0 + 4.0)])
    pool.close()


class Acted:
    """An actor without a policy, and what it was asked for."""

    def __init__(self):
        self.seated, self.asked = [], 0

    def actor(self):
        def seat(rows):
            self.seated.append(len(rows))
            return len(rows)

        def act(seats, observations, seeds, times):
            assert len(observations) == len(seeds) == len(times) == seats
            self.asked += seats
            return np.zeros(seats, np.int32)

        return Actor(seat, act)


def test_what_is_over_stops_costing(walk):
    acted = Acted()
    told = walk._run(acted.actor(), np.arange(1000, 1300))
    assert acted.seated[0] == 512 and acted.seated[-1] <= 128
    assert acted.seated == sorted(acted.seated, reverse=True)
    assert told.lengths.sum() <= acted.asked < 2.2 * told.lengths.sum()
    few = opened("walk", seats=64)
    waiting = Acted()
    same = few._run(waiting.actor(), np.arange(1000, 1300))
    np.testing.assert_array_equal(told.returns, same.returns)
    assert set(waiting.seated) == {64} and waiting.asked < 1.5 * told.lengths.sum()
    few.close()
    assert [seats_for(n) for n in (0, 1, 64, 65, 300)] == [64, 64, 64, 128, 512]


def test_an_environment_that_fails_costs_its_episode(bad, capfd):
    wrong = {i: i for i in range(1, 11)}
    seeds = np.arange(1000, 1040)
    fine = bad._run(Acted().actor(), seeds)
    for place, seed in wrong.items():
        seeds[3 * place] = seed
    found = bad._run(Acted().actor(), seeds)
    lost = np.flatnonzero(np.isnan(found.returns))
    assert lost.tolist() == [3 * place for place in wrong]
    keep = ~np.isnan(found.returns)
    np.testing.assert_array_equal(found.returns[keep], fine.returns[keep])
    np.testing.assert_array_equal(found.lengths[keep], fine.lengths[keep])
    assert (found.lengths[lost] == 0).all()
    kinds = {"raised": 2, "wrong": 4, "crashed": 1, "timeout": 1, "nan": 2}
    assert found.failures.counts == kinds
    line = found.failures.line
    assert "2 raised, the first: KeyError: 'a key" in line and "(gymnasium_environments.py:" in line
    assert "something else than (observation, info)" in line and "\n" not in line


def test_slow_is_not_late(bad):
    """Six environments of one process take more than the limit together, but none alone."""
    found = bad._run(Acted().actor(), np.full(12, 11))
    assert np.isfinite(found.returns).all()


def test_a_killed_process_costs_one_episode(walk):
    seeds = np.arange(1000, 1200)
    expected = walk._run(Acted().actor(), seeds)
    victim = walk._workers[1].pid
    acted = Acted().actor()
    killed = []

    def act(*given):
        if given[3].max() == 5 and not killed:  # in the middle of the episodes
            killed.append(victim)
            os.kill(victim, signal.SIGKILL)
        return acted.act(*given)

    found = walk._run(Actor(acted.seat, act), seeds)
    keep = ~np.isnan(found.returns)
    assert killed and found.failures.counts == {"crashed": 1} and keep.sum() == 199
    np.testing.assert_array_equal(found.returns[keep], expected.returns[keep])
    assert walk._workers[1].pid != victim
    threading.Timer(0.01, os.kill, (walk._workers[0].pid, signal.SIGKILL)).start()
    found = walk._run(Acted().actor(), np.arange(1000, 1400))  # at any moment
    assert np.isnan(found.returns).sum() <= 1


def test_what_the_centre_loses_is_begun_again(bad, walk, state, monkeypatch, tmp_path):
    monkeypatch.setenv("DIED", str(tmp_path / "died"))
    pool = opened("dying_once", workers=1)
    found = pool.unperturbed(LINEAR, state.params, np.arange(4))
    np.testing.assert_array_equal(found, walk.unperturbed(LINEAR, state.params, np.arange(4)))
    assert pool.failures.line == "episodes that could not be scored: 1 crashed"
    pool.close()
    found = bad.unperturbed(LINEAR, state.params, np.array([1000, 3]))
    assert np.isnan(found).tolist() == [False, True]


def test_a_member_with_a_lost_episode_is_dropped(bad, state, members):
    seeds = SEEDS.copy()
    seeds[4, 1] = 3
    fitness, figures = bad.evaluate(LINEAR, state.params, members, seeds)
    assert np.flatnonzero(np.isnan(fitness)).tolist() == [4] and figures["unscored"] == 1
    assert np.isfinite(figures["train_return"]) and bad.failures.counts == {"raised": 2}
    assert "2 raised, the first: ValueError: a step too far" in bad.failures.line
    _, metrics = STRATEGY.tell(state, members, jnp.asarray(fitness))
    assert int(metrics["dropped"]) == 1


def test_processes_that_only_die_are_not_started_for_ever(monkeypatch):
    monkeypatch.setattr(gymnasium_lockstep, "GIVE_UP", 3)
    pool = opened("members_die", workers=1)
    found = pool._run(Acted().actor(), np.arange(12))
    assert np.isnan(found.returns).all() and found.failures.counts == {"crashed": 12}
    pool.close()


def test_a_return_that_32_bits_do_not_hold_costs_its_episode():
    pool = opened("pays_more_than_32_bits_hold_in_the_end", workers=1)
    found = pool._run(Acted().actor(), np.arange(12))
    assert np.isnan(found.returns).all() and found.failures.counts == {"nan": 12}
    assert "the return is 1.2e+40; expected a finite float" in found.failures.line
    pool.close()


def test_a_first_generation_without_a_score_ends_the_run(state, members):
    pool = opened("only_members_fail", workers=1)
    with pytest.raises(
        InputError, match="could not score a single member: 36 raised, the first: O"
    ):
        pool.evaluate(LINEAR, state.params, members, SEEDS)
    pool.close()


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        ("absent", {}, "has no function 'absent'"),
        ("raises", {}, r"cannot be stepped: it raised RuntimeError: no display \(gymnasium_env"),
        ("dies", {}, "cannot be stepped: it crashed"),
        ("hangs", {"timeout": 0.4}, "cannot be stepped: it took more than"),
        ("walk", {"timeout": 0.0}, "timeout is 0.0; it must be above 0 and at most"),
    ],
)
def test_what_cannot_work_is_one_line_before_anything_runs(function, options, message):
    with pytest.raises(InputError, match=message) as error:
        opened(function, **({"workers": 1} | options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("function", "kind", "line"),
    [
        ("old_api", "wrong", r"reset returned something else than \(observation, info\)"),
        ("raises_at_a_step", "raised", r"RuntimeError: no step \(gymnasium_environments"),
        ("says_nan", "nan", "an observation holds NaN or infinity"),
        ("pays_nothing", "wrong", "the reward is None; expected a finite float"),
        ("pays_too_much", "nan", "the reward is a number too large for a float; expected a"),
        ("pays_more_than_32_bits_hold", "nan", r"the reward is 1e\+300"),
        ("without_actions", "wrong", "a SimpleNamespace without action_space; expected an env"),
        ("unbounded", "wrong", "its actions have no bounds; wrap it in gymnasium.wrappers.Resc"),
    ],
)
def test_what_an_environment_says_of_itself_at_its_first_step(tmp_path, function, kind, line):
    (tmp_path / "progress").write_bytes(bytes(Progress.size))
    progress = Progress(str(tmp_path / "progress"))
    slots = Slots(maker(f"{HERE}:{function}"), progress)
    answer, _ = slots({"describe": True}, b"")
    (place, found, said) = answer["failed"]
    assert (place, found) == (0, kind) and re.match(line, said)
    assert progress.calls > 0 and progress.item == IDLE
