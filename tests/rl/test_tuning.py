"""The search by itself: what is drawn, who goes on, what is printed. No training."""

import itertools
import json
import math
from collections import Counter

import pytest

from springroll.errors import InputError
from springroll.markdown import markdown_table
from springroll.rl.config import PPOSettings, RLConfig
from springroll.rl.tuning import (
    SPACES,
    Record,
    Rung,
    Tuning,
    applied,
    cells,
    changed,
    command_line,
    draw,
    halving,
    json_line,
    nested,
    read_records,
    rungs,
    shape,
    space,
)


@pytest.mark.parametrize("method", SPACES)
def test_every_draw_makes_a_config(method):
    for trial in range(50):
        config = applied(RLConfig(method=method), draw(0, trial, space(method)))
        assert isinstance(config, RLConfig) and isinstance(config.ppo, PPOSettings)


def test_draws_follow_from_seed_trial_and_name_alone():
    whole = draw(3, 5, space("eggroll"))
    assert whole == draw(3, 5, space("eggroll"))
    assert whole != draw(3, 6, space("eggroll")) and whole != draw(4, 5, space("eggroll"))
    fewer = draw(3, 5, space("openes"))
    assert "rank" not in fewer and fewer.items() < whole.items()


def test_choices_are_drawn_equally_often():
    each = Counter(draw(0, trial, space("eggroll"))["pop_size"] for trial in range(2000))
    assert set(each) == {512, 1024, 2048, 4096}
    assert all(abs(count - 500) < 5 * math.sqrt(2000 * 0.25 * 0.75) for count in each.values())


def test_what_is_given_is_not_searched():
    left = space("eggroll", RLConfig(sigma=0.3, pop_size=64))
    assert left.keys() == SPACES["eggroll"].keys() - {"sigma", "pop_size"}
    left = space("ppo", RLConfig(ppo=PPOSettings(lr=0.5)))
    assert left.keys() == SPACES["ppo"].keys() - {"ppo.lr"}
    assert space("ppo") is SPACES["ppo"]


def test_rounds_get_smaller_and_longer():
    assert rungs(Tuning(trials=4, factor=2), 8) == [Rung(4, 4), Rung(2, 8)]
    assert rungs(Tuning(trials=2), 8) == [Rung(2, 8)]
    for trials in (2, 3, 9, 20, 100):
        plan = rungs(Tuning(trials=trials), 90.0)
        assert plan[0].trials == trials and plan[-1].budget == 90.0
        assert all(a.trials > b.trials >= 2 for a, b in itertools.pairwise(plan))
        assert all(b.budget == pytest.approx(3 * a.budget) for a, b in itertools.pairwise(plan))


DRAWN = [{"lr": float(i)} for i in range(9)]
PLAN = rungs(Tuning(trials=9, factor=3), 9.0)


def quality(trial):
    """Trial 4 is best, those near it next."""
    return -abs(trial - 4.0) - 0.01 * trial


def test_the_best_goes_through_and_comes_first():
    calls = []

    def score(trial, budget):
        calls.append((trial, budget))
        return quality(trial) * 10 / budget

    records = halving(DRAWN, PLAN, score)
    assert Counter(budget for _, budget in calls) == {3.0: 9, 9.0: 3}
    assert [record.trial for record in records[:3]] == sorted([3, 4, 5], key=quality, reverse=True)
    assert [record.budget for record in records] == [9.0] * 3 + [3.0] * 6
    rest = [record.trial for record in records[3:]]
    assert rest == sorted(rest, key=quality, reverse=True)
    assert records[0].settings == DRAWN[4]


def test_a_search_goes_on_where_it_was_killed(tmp_path):
    """Killed after any number of scores, the same records come out, and none is made twice."""
    whole = halving(DRAWN, PLAN, lambda trial, budget: quality(trial))
    for survived in range(12):
        path, calls = tmp_path / f"{survived}.jsonl", []
        with open(path, "a") as file:

            def score(trial, budget, calls=calls, survived=survived):
                if len(calls) == survived:
                    raise KeyboardInterrupt
                calls.append((trial, budget))
                return quality(trial)

            with pytest.raises(KeyboardInterrupt):
                halving(
                    DRAWN, PLAN, score, told=lambda record, file=file: file.write(json_line(record))
                )
            file.write('{"trial": 7, "ru')  # torn
        assert len(read_records(path, DRAWN)) == survived

        def rest(trial, budget, calls=calls):
            assert (trial, budget) not in calls
            calls.append((trial, budget))
            return quality(trial)

        assert halving(DRAWN, PLAN, rest, read_records(path, DRAWN)) == whole
        assert len(calls) == 12


def test_a_trial_that_fails_loses_and_says_why():
    def score(trial, budget):
        if trial == 4:
            raise InputError("no member has a finite fitness")
        return math.nan if trial == 3 else quality(trial)

    records = halving(DRAWN, PLAN, score)
    assert [record.trial for record in records[:3]] == [5, 2, 6] or records[0].trial == 5
    lost = {record.trial: record.note for record in records if record.note}
    assert lost == {4: "no member has a finite fitness", 3: "its score is nan"}
    assert {record.trial for record in records[-2:]} == {3, 4}
    assert "failed: its score is nan" in markdown_table(cells(records))


def test_trials_of_one_shape_follow_each_other():
    drawn = [{"pop_size": 512 * (1 + i % 2), "lr": float(i)} for i in range(6)]
    order = []
    halving(drawn, [Rung(6, 1.0)], lambda trial, budget: order.append(trial) or 0.0)
    assert order == [1, 3, 5, 0, 2, 4]
    assert shape(drawn[0]) == shape(drawn[2]) != shape(drawn[1])


def test_records_survive_the_file(tmp_path):
    records = [
        Record(0, 0, 3.0, 1.5, {"lr": 0.1, "ranks": True}),
        Record(1, 0, 3.0, -math.inf, {"lr": 0.2, "ranks": False}, "why"),
    ]
    path = tmp_path / "trials.jsonl"
    drawn = [record.settings for record in records]
    assert read_records(path, drawn) == []
    path.write_text("".join(map(json_line, records)))
    assert read_records(path, drawn) == records
    assert cells(records) == [
        ["trial", "seconds", "return", "lr", "ranks"],
        ["0", "3", "1.5", "0.1", "yes"],
        ["1", "3", "failed: why", "0.2", "no"],
    ]


def test_the_best_is_a_command_and_a_change_of_a_config():
    settings = {"lr": 0.1, "ranks": True, "ppo.lr": 0.5, "ppo.normalise_rewards": False}
    line = command_line(RLConfig(env="Pendulum-v1"), settings)
    assert line == (
        "springroll rl --env Pendulum-v1 --method eggroll --lr 0.1 --ranks --ppo.lr 0.5 "
        "--ppo.no-normalise-rewards"
    )
    assert command_line(RLConfig(gif=False)).endswith("--env CartPole-v1 --method eggroll --no-gif")
    assert nested(settings) == {
        "lr": 0.1,
        "ranks": True,
        "ppo": {"lr": 0.5, "normalise_rewards": False},
    }
    assert changed(applied(RLConfig(), settings), RLConfig()) == settings


@pytest.mark.parametrize(("name", "value"), [("trials", 1), ("factor", 1)])
def test_a_search_that_cannot_be_is_one_line(name, value):
    with pytest.raises(InputError, match=f"{name} is {value}; "):
        Tuning(**{name: value})


@pytest.mark.parametrize(
    "changes",
    [
        None,
        {"trial": 2},
        {"trial": -1},
        {"trial": True},
        {"score": "1.5"},
        {"score": math.nan},
        {"score": [1.5]},
        {"budget": None},
        {"settings": []},
        {"settings": {"lr": 0.2}},
        {"note": 3},
        {"more": 1},
    ],
)
def test_a_line_that_is_no_record_of_the_search_is_refused(tmp_path, changes):
    record = Record(0, 0, 3.0, 1.5, {"lr": 0.1})
    row = json.loads(json_line(record))
    path = tmp_path / "trials.jsonl"
    changed = "[]" if changes is None else json.dumps(row | changes)
    path.write_text(f"{json_line(record)}{changed}\n")
    with pytest.raises(InputError, match=r"line 2 of .*trials.jsonl is no record of a trial"):
        read_records(path, [{"lr": 0.1}, {"lr": 0.3}])
