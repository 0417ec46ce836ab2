"""Gymnasium's spaces, by what they have: actions there and back, observations as vectors."""

import re
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from springroll.envs.environment import Box, Discrete, MultiDiscrete
from springroll.envs.gymnasium_spaces import actions_of, flat_of
from springroll.envs.gymnasium_worker import maker
from springroll.errors import InputError
from springroll.program import pip_install

has = SimpleNamespace


class MultiBinary:
    n = 3


def test_choices():
    actions, native = actions_of(has(n=np.int64(3), start=np.int64(5)))
    assert actions == Discrete(3) and native(np.array([0, 2], np.int32)) == [5, 7]
    assert all(type(each) is int for each in native(np.array([0, 2], np.int32)))
    actions, native = actions_of(has(nvec=np.array([2, 4]), start=np.array([0, 1])))
    assert actions == MultiDiscrete((2, 4)) and actions.outputs == 6
    np.testing.assert_array_equal(native(np.array([[1, 3]], np.int32)), [[1, 4]])
    actions, native = actions_of(MultiBinary())
    assert actions == MultiDiscrete((2, 2, 2))
    (bits,) = native(np.array([[1, 0, 1]], np.int32))
    assert bits.dtype == np.int8 and bits.tolist() == [1, 0, 1]


def test_real_numbers_keep_their_shape_and_type():
    space = has(
        low=np.float32(-1), high=np.array([[1, 2]], np.float32), shape=(1, 2), dtype=np.float32
    )
    actions, native = actions_of(space)
    assert actions == Box((-1.0, -1.0), (1.0, 2.0))
    (action,) = native(np.array([[0.5, 1.5]], np.float32))
    assert action.shape == (1, 2) and action.dtype == np.float32
    actions, native = actions_of(has(low=np.zeros(1), high=np.ones(1)))
    assert native(np.zeros((2, 1), np.float32))[0].dtype == np.float32


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (has(low=np.array([0.0]), high=np.array([np.inf])), "no bounds; wrap it in gymnasium.wrap"),
        (has(nvec=np.ones((2, 2))), "its actions are SimpleNamespace; expected a space with n"),
        (has(), "its actions are SimpleNamespace; expected"),
    ],
)
def test_actions_that_a_policy_cannot_choose(space, message):
    with pytest.raises(InputError, match=message):
        actions_of(space)


def test_observations_are_flat_and_in_order():
    box = has(low=0, high=255, shape=(2, 2))
    choice, several = has(n=3, start=1), has(nvec=np.array([2, 3]))
    parts = has(spaces={"z": box, "a": has(spaces=(choice, several)), "bits": MultiBinary()})
    given = {"a": (2, np.array([1, 0])), "bits": np.array([1, 0, 1], np.int8)}
    given["z"] = np.array([[0, 1], [2, 255]], np.uint8)
    flat = flat_of(parts)(given)
    assert flat.dtype == np.float32
    assert flat.tolist() == [0, 1, 2, 255, 0, 1, 0, 0, 1, 1, 0, 0, 1, 0, 1]
    assert flat_of(None)([[1, 2], [3, 4]]).tolist() == [1, 2, 3, 4]
    assert flat_of(None)(2.5).tolist() == [2.5]


def test_registered_environments(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(InputError, match=r"needs gymnasium, .*: " + re.escape(pip_install("rl"))):
        maker("gymnasium-CartPole-v1")
    fake = ModuleType("gymnasium")
    made = []
    make = lambda id, disable_env_checker: made.append((id, disable_env_checker)) or "made"
    vars(fake).update(registry={"CartPole-v1": 0, "Acrobot-v1": 0}, make=make, __version__="9.9")
    monkeypatch.setitem(sys.modules, "gymnasium", fake)
    found = maker("gymnasium-CartPole-v1")
    assert (found.make(), found.version, found.file) == ("made", "gymnasium 9.9", "")
    assert made == [("CartPole-v1", True)]
    assert maker("gymnasium-ale_py:Pong-v5").make() == "made"  # gymnasium imports what registers it
    with pytest.raises(InputError, match="'gymnasium-CartPole-v0'; nearest: gymnasium-CartPole-v1"):
        maker("gymnasium-CartPole-v0")
    with pytest.raises(InputError, match=r"nearest: none; gymnasium.pprint_registry\(\)"):
        maker("gymnasium-8")
