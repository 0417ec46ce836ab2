"""Environments with Gymnasium's reset and step for the tests, good ones and bad ones."""

import os
import time
from types import SimpleNamespace
from typing import Any

import numpy as np

from springroll.envs.environment import Discrete, Environment


class Walk:
    """A point is pushed left or right; how long an episode takes depends on the seed.

    The reward is the point's place, the first observation; the second one is noise.
    """

    action_space = SimpleNamespace(n=2)
    max_steps = 40

    def reset(self, seed: int | None = 0) -> Any:
        self._draw = np.random.default_rng(seed)
        self._left = int(self._draw.integers(1, 60))  # more than max_steps for some
        self._place = self._draw.normal()
        return self._observed(), {}

    def step(self, action) -> Any:
        assert action in (0, 1) and isinstance(action, int)
        self._place += 0.3 if action else -0.3
        self._left -= 1
        return self._observed(), np.float64(self._place), self._left <= 0, False, {}

    def _observed(self):
        return np.array([self._place, self._draw.normal()])


def walk():
    return Walk()


class Reaching:
    """Two real numbers in the shape (1, 2) are to be zero; observations in a dict."""

    action_space = SimpleNamespace(
        low=np.array([[-1, -2]]), high=np.array([[1, 2]]), shape=(1, 2), dtype=np.float64
    )
    observation_space = SimpleNamespace(
        spaces={
            "where": SimpleNamespace(low=-np.ones((2, 2)), high=np.ones((2, 2)), shape=(2, 2)),
            "which": SimpleNamespace(n=3),
        }
    )
    spec = SimpleNamespace(max_episode_steps=4)

    def reset(self, seed=None):
        return {"which": 1, "where": np.eye(2)}, {}

    def step(self, action):
        assert action.shape == (1, 2) and action.dtype == np.float64
        return {"which": 2, "where": np.eye(2)}, -float(np.square(action).sum()), False, False, {}


def reaching():
    return Reaching()


class Misbehaving(Walk):
    """What goes wrong in the third step, or at once, is said by the seed, if it is below 20."""

    def reset(self, seed=0):
        assert seed is not None
        self._wrong, self._age = seed if seed < 20 else None, 0
        if self._wrong == 1:
            raise KeyError("a key\nof two lines")
        observation, info = super().reset(seed=seed + 100)
        if self._wrong is not None:
            self._left = 10
        if self._wrong == 2:
            return observation
        return observation, info

    def step(self, action):
        self._age += 1
        observation, reward, *rest = super().step(action)
        if self._age < 3:
            return observation, reward, *rest
        if self._wrong == 3:
            raise ValueError("a step too far")
        if self._wrong == 4:
            os._exit(3)
        if self._wrong == 5:
            time.sleep(1000)
        if self._wrong == 6:
            reward = float("nan")
        if self._wrong == 7:
            observation[1] = np.nan
        if self._wrong == 8:
            observation = observation[:1]
        if self._wrong == 9:
            reward = "1"
        if self._wrong == 10:
            return observation, reward, *rest[1:]
        if self._wrong == 11 and self._age == 3:
            time.sleep(0.4)  # slow, but in time
        return observation, reward, *rest


class OnlyMembersFail(Walk):
    def reset(self, seed=None):
        if seed:
            raise OSError("no members, please")
        return super().reset(seed=seed)


class MembersDie(Walk):
    def reset(self, seed=None):
        if seed:
            os._exit(1)
        return super().reset(seed=seed)


def members_die():
    return MembersDie()


class DyingOnce(Walk):
    """Its process dies in the episode of seed 2, if nothing is there yet where DIED says."""

    def step(self, action):
        if self._seed == 2 and not os.path.exists(os.environ["DIED"]):
            open(os.environ["DIED"], "w").close()
            os._exit(1)
        return super().step(action)

    def reset(self, seed=None):
        self._seed = seed
        return super().reset(seed=seed)


def dying_once():
    return DyingOnce()


def misbehaving():
    return Misbehaving()


def only_members_fail():
    return OnlyMembersFail()


def old_api():
    class Old(Walk):
        def reset(self, seed=0):
            return super().reset(seed=seed)[0]

    return Old()


def raises():
    raise RuntimeError("no display")


def raises_at_a_step():
    class Raising(Walk):
        def step(self, action):
            raise RuntimeError("no step")

    return Raising()


class Paying(Walk):
    def __init__(self, reward):
        self._reward = reward

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, self._reward, *rest


def pays_nothing():
    return Paying(None)


def pays_too_much():
    return Paying(10**400)


def pays_more_than_32_bits_hold():
    return Paying(1e300)


def pays_more_than_32_bits_hold_in_the_end():
    return Paying(3e38)


def says_nan():
    class Nan(Walk):
        def step(self, action):
            return np.full(2, np.nan), 0.0, False, False, {}

    return Nan()


def dies():
    os._exit(1)


def hangs():
    time.sleep(1000)


def without_actions():
    return SimpleNamespace(reset=lambda seed: (np.zeros(2), {}), step=lambda action: None)


def unbounded():
    walk = Walk()
    walk.action_space = SimpleNamespace(low=np.array([-np.inf]), high=np.array([1.0]), shape=(1,))
    return walk


def a_number():
    return 3


def ours():
    def nothing(*_):
        raise AssertionError("it is not run")

    return Environment("mine", 1, Discrete(2), 5, nothing, nothing)
