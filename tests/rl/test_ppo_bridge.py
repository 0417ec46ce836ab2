"""Our environments as rejax steps them: equal to our own loop, episode after episode."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.envs.environment import MultiDiscrete
from springroll.errors import InputError
from springroll.rl.ppo_bridge import Bridge
from tests.rl.toy_episodes import LIMIT, countdown, forbidden_choice, throw

STEPS = 10


def stepped(bridge, steps=STEPS):
    """Observation, reward and whether it was the last, at every step; and the last state."""
    observation, state = bridge.reset(jax.random.key(0), None)
    seen: list[tuple[float, float | None, bool | None]] = [(float(observation[0]), None, None)]
    step = jax.jit(bridge.step)
    for t in range(steps):
        observation, state, reward, done, _ = step(jax.random.key(t), state, jnp.int32(0), None)
        seen.append((float(observation[0]), float(reward), bool(done)))
    return seen, state


def by_our_own_loop(environment, steps=STEPS):
    state, observation = environment.reset(jax.random.key(0))
    seen: list[tuple[float, float | None, bool | None]] = [(float(observation[0]), None, None)]
    taken = 0
    for t in range(steps):
        step_key, reset_key = jax.random.split(jax.random.key(t))
        found = environment.step(step_key, state, jnp.int32(0))
        taken += 1
        state, observation = found.state, found.observation
        done = bool(found.terminated | found.truncated) or taken == environment.max_steps
        if done:
            (state, observation), taken = environment.reset(reset_key), 0
        seen.append((float(observation[0]), float(found.reward), done))
    return seen


@pytest.mark.parametrize("ends", [3, 99])
def test_it_is_our_own_loop_that_begins_anew(ends):
    environment = countdown(ends)
    found, state = stepped(Bridge(environment))
    assert found == by_our_own_loop(environment)
    length = min(ends, LIMIT)
    assert [done for _, _, done in found[1:]] == [(t + 1) % length == 0 for t in range(STEPS)]
    assert int(state.ended) == STEPS // length
    assert float(state.newest) == sum(range(1, length + 1))
    assert float(state.so_far) == sum(range(1, STEPS % length + 1))


def test_environments_side_by_side_begin_anew_each_for_itself():
    bridge = Bridge(countdown())
    keys = jax.random.split(jax.random.key(3), 4)
    _, state = jax.vmap(bridge.reset, (0, None))(keys, None)
    state = state._replace(state=state.state | {"steps": jnp.array([0, 1, 2, 2])})
    step = jax.vmap(bridge.step, (0, 0, 0, None))
    seen, after, reward, done, _ = step(keys, state, jnp.zeros(4, jnp.int32), None)
    np.testing.assert_array_equal(done, [False, False, True, True])
    np.testing.assert_array_equal(reward, [1, 2, 3, 3])
    np.testing.assert_array_equal(after.state["steps"], [1, 2, 0, 0])
    alone = [bridge.reset(jax.random.split(key)[1], None)[0] for key in keys]
    np.testing.assert_array_equal(seen[2:], jnp.stack(alone[2:]))


def test_a_reset_costs_nothing_where_no_episode_ends():
    """Mapped, the reset is inside a loop and not in the step itself."""
    bridge = Bridge(countdown())
    state = jax.vmap(bridge.reset, (0, None))(jax.random.split(jax.random.key(0), 3), None)[1]
    keys, actions = jax.random.split(jax.random.key(1), 3), jnp.zeros(3, jnp.int32)
    step = lambda keys, state: jax.vmap(bridge.step, (0, 0, 0, None))(keys, state, actions, None)
    (loop,) = [
        each for each in jax.make_jaxpr(step)(keys, state).eqns if "body_jaxpr" in each.params
    ]
    drawn = lambda eqns: [each for each in eqns if each.params.get("name") == "_randint"]
    assert drawn(loop.params["body_jaxpr"].eqns)
    assert not drawn(jax.make_jaxpr(step)(keys, state).eqns)


def test_a_mask_follows_the_observation():
    bridge = Bridge(forbidden_choice())
    observation, state = bridge.reset(jax.random.key(0), None)
    np.testing.assert_array_equal(observation, [1, 1, 1, 1, -1])
    after = bridge.step(jax.random.key(0), state, jnp.int32(1), None)[0]
    np.testing.assert_array_equal(after, observation)


def test_real_numbers_go_from_minus_one_to_one():
    bridge = Bridge(throw())
    for unit, meant in ((-1.0, 2.0), (0.0, 4.0), (0.75, 5.5), (7.0, 6.0)):
        np.testing.assert_allclose(bridge.meant(jnp.array([unit])), [meant])


def test_a_copy_is_the_same():
    bridge = Bridge(countdown())
    assert copy.deepcopy({"env": bridge})["env"] is bridge


def test_several_choices_at_once_are_refused():
    environment = dataclasses.replace(countdown(), actions=MultiDiscrete((2, 3)))
    with pytest.raises(InputError, match=r"countdown takes multi-discrete 2, 3; use the method"):
        Bridge(environment)
