"""The quick recipes beside their goals: the table, and what is not run again."""

import pytest

from bench import control_goals
from springroll.rl.recipes import QUICK

pytestmark = pytest.mark.slow

TINY = "--generations 1 --pop-size 4 --width 8 --layers 1 --eval-episodes 4 --no-gif".split()


def test_every_quick_recipe_has_a_goal():
    assert set(control_goals.GOALS) == set(QUICK)


@pytest.mark.parametrize(
    ("recipe", "found", "expected"),
    [
        ("quick-cartpole", {"eval_return": 475.0, "random_return": 20.0}, True),
        ("quick-cartpole", {"eval_return": 474.0, "random_return": 20.0}, False),
        ("quick-pendulum", {"eval_return": -251.0, "random_return": -1200.0}, False),
        ("quick-game2048", {"eval_return": 1500.0, "random_return": 1000.0}, True),
        ("quick-game2048", {"eval_return": 1400.0, "random_return": 1000.0}, False),
    ],
)
def test_a_goal_is_a_return_or_so_many_times_that_of_chance(recipe, found, expected):
    assert control_goals.reached(recipe, found) is expected


def test_runs_are_made_once_and_tabled(tmp_path, monkeypatch):
    run = lambda: control_goals.run(str(tmp_path), ["quick-cartpole"], 1, TINY)
    assert run() == {"reached": 0, "runs": 1}
    text = (tmp_path / "control_goals.md").read_text()
    assert "| quick-cartpole | 475 |" in text and "seed 0" in text
    monkeypatch.setattr(control_goals.subprocess, "run", None)  # not called again
    assert run()["runs"] == 1
    assert (tmp_path / "control_goals.md").read_text() == text
