"""What PPO is told, and what is said where rejax is missing."""

import re
import sys
from dataclasses import replace

import pytest

from springroll.errors import InputError
from springroll.program import pip_install
from springroll.rl.config import TASKS, PPOSettings, settings_for
from springroll.rl.ppo import ppo
from springroll.rl.recipes import PAPER
from tests.rl.toy_episodes import throw


def test_without_rejax_there_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "rejax", None)
    with pytest.raises(
        InputError, match="needs the package 'rejax': " + re.escape(pip_install("rl"))
    ):
        ppo(throw(), PPOSettings())


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("minibatches", 5, "must divide num_envs \\* num_steps, 4096, evenly"),
        ("num_envs", 0, "must be at least 1"),
        ("lr", 0.0, "must be above 0"),
        ("gamma", 1.5, "must be from 0 to 1"),
        ("entropy", -1.0, "must be 0 or more"),
        ("activation", "sine", "one of relu, swish, tanh"),
    ],
)
def test_settings_that_cannot_be_are_one_line(name, value, says):
    with pytest.raises(InputError, match=f"ppo.{name} is .*{says}"):
        replace(PPOSettings(), **{name: value})


def test_the_sixteen_tasks_have_settings_within_the_ranges_of_the_paper():
    assert set(TASKS) == {env for env, _, _ in PAPER.values()}
    for settings in TASKS.values():
        assert 1e-4 <= settings.lr <= 1e-3 and 0.1 <= settings.clip <= 0.3
        assert 64 <= settings.num_envs <= 256 and 64 <= settings.num_steps <= 256
        assert 4 <= settings.epochs <= 16 and 16 <= settings.minibatches <= 64
        assert 0.95 <= settings.gamma <= 0.999
    assert settings_for("brax-ant") == TASKS["brax-ant"]
    assert settings_for("Grid-5x5") == PPOSettings()
