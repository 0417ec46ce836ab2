"""A search in a folder: what it writes, and that it goes on; and one real one, the smallest."""

import json
from dataclasses import replace

import pytest

from springroll.errors import InputError
from springroll.rl import tuning_runs as rl_tuning_runs
from springroll.rl.config import RLConfig
from springroll.rl.tuning import Tuning
from springroll.rl.tuning_runs import best_command, table, tune

CONFIG = RLConfig(seconds=9.0, pop_size=8, eval_episodes=4, width=8, layers=1, max_steps=4)
SEARCH = Tuning(trials=6, factor=2)


@pytest.fixture
def scores(monkeypatch):
    """Scores without training; the config of each is kept."""
    made = []

    def scored(config, console=None):
        made.append(config)
        return config.sigma * 10 + config.lr

    monkeypatch.setattr(rl_tuning_runs, "scored", scored)
    return made


def test_what_a_search_leaves(tmp_path, scores):
    config = replace(CONFIG, out=str(tmp_path / "search"))
    records = tune(config, SEARCH)
    assert len(records) == 6 and records[0].budget == 9.0
    assert [each.seconds for each in scores] == [2.25] * 6 + [4.5] * 3 + [9.0] * 2
    assert {each.pop_size for each in scores} == {8} and not any(each.gif for each in scores)
    assert len({each.out for each in scores}) == 6
    folder = tmp_path / "search"
    best = json.loads((folder / "best.json").read_text())
    assert best["config"] == records[0].settings and best["eval_return"] == records[0].score
    assert best["options"][:2] == ["--width", "8"] and "--seconds" not in best["options"]
    line = best_command(folder)
    assert " ".join(best["options"][:2]) in line
    assert line in (folder / "trials.md").read_text()
    assert line.startswith("springroll rl --env CartPole-v1 --method eggroll --seconds 9.0")
    assert f"--sigma {records[0].settings['sigma']}" in line and "--out" not in line
    assert table(records).row_count == 6


def test_it_goes_on_and_only_with_the_same_search(tmp_path, scores, monkeypatch):
    config = replace(CONFIG, out=str(tmp_path / "search"))
    with pytest.raises(InputError, match="nothing to resume"):
        tune(replace(config, resume=True), SEARCH)
    whole = tune(replace(config, out=str(tmp_path / "whole")), SEARCH)
    scores.clear()
    fine = rl_tuning_runs.scored

    def stopped(config, console=None):
        if len(scores) == 4:
            raise rl_tuning_runs.Interrupted(2)
        return fine(config)

    monkeypatch.setattr(rl_tuning_runs, "scored", stopped)
    with pytest.raises(rl_tuning_runs.Interrupted):
        tune(config, SEARCH)
    assert len((tmp_path / "search" / "trials.jsonl").read_text().splitlines()) == 4
    monkeypatch.setattr(rl_tuning_runs, "scored", fine)
    with pytest.raises(InputError, match="go on with its search by --resume"):
        tune(config, SEARCH)
    for other, says in (({"sigma": 0.3}, "its search is"), ({"seconds": 5.0}, "its budget is")):
        with pytest.raises(InputError, match=says):
            tune(replace(config, resume=True, **other), SEARCH)
    assert tune(replace(config, resume=True), SEARCH) == whole
    assert len(scores) == 11


def test_a_search_needs_an_end_and_something_to_search(tmp_path, scores):
    config = replace(CONFIG, out=str(tmp_path / "search"))
    with pytest.raises(InputError, match="needs --seconds"):
        tune(replace(config, seconds=None), SEARCH)
    monkey = {"sigma": 0.3, "sigma_half_life": 9.0, "lr": 0.3, "lr_half_life": 9.0, "episodes": 2}
    rest = {"optimizer": "sgd", "ranks": True, "deterministic": True, "rank": 2}
    with pytest.raises(InputError, match="every option of the search is given"):
        tune(replace(config, **monkey, **rest), SEARCH)
    assert not (tmp_path / "search").exists()


@pytest.mark.slow  # as tests/cli/test_rl.py does, with the command
def test_a_real_search(tmp_path):
    config = replace(
        CONFIG, out=str(tmp_path / "search"), seconds=None, generations=2, episodes=2, devices=1
    )
    config = replace(config, rank=2, deterministic=True)
    records = tune(config, Tuning(trials=2, factor=2))
    assert [record.budget for record in records] == [2.0, 2.0]
    for record in records:
        summary = tmp_path / "search" / f"trial-{record.trial:03d}" / "summary.json"
        found = json.loads(summary.read_text())
        assert found["generations"] == 2 and found["eval_return"] == record.score
    assert records[0].score >= records[1].score
