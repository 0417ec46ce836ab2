"""Three methods beside each other: the arithmetic on made-up runs, and what is run how often."""

import json
import subprocess

import numpy as np
import pytest

from springroll.bench import control
from springroll.bench.control_runs import (
    Run,
    at,
    draw,
    figures,
    final,
    normalised,
    over_all,
    random_return,
    read,
    table,
)
from springroll.rl.config import TASKS


def made(*finals, random=10.0, rate=1000.0):
    return [Run((0.0, 2.0, 5.0), (random, (random + x) / 2, x), random, rate) for x in finals]


RUNS = {
    "cart": {
        "eggroll": made(100.0, 110, 90, 100),
        "openes": made(50.0, 60, 55, 55),
        "ppo": made(60.0, 60, 60, 60, rate=500.0),
    },
    "hopeless": {
        "eggroll": made(20.0, 20, 20, 20),
        "openes": made(10.0, 10, 10, 10),
        "ppo": made(9.0, 10, 11, 10),
    },
}


def write(folder, run):
    folder.mkdir(parents=True)
    rows = [{"generation": 1, "seconds": 0.5, "train_return": 1.0}]
    pairs = zip(run.seconds, run.returns, strict=True)
    rows += [{"generation": 2, "seconds": s, "eval_return": r} for s, r in pairs]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {"random_return": run.random, "env_steps_per_second": run.rate}
    (folder / "summary.json").write_text(json.dumps(summary))


def test_a_run_is_read_as_it_was_written(tmp_path):
    (run,) = made(42.0)
    write(tmp_path / "run", run)
    assert read(tmp_path / "run") == run and run.final == 42.0


def test_a_curve_holds_the_newest_validation():
    (run,) = made(100.0)
    np.testing.assert_array_equal(
        at(run, np.array([0, 1.9, 2, 4.9, 5, 99])), [10, 10, 55, 55, 100, 100]
    )
    late = run._replace(seconds=(1.0, 2.0, 5.0))
    assert at(late, np.array([0.0]))[0] == 10


def test_ppo_is_one_and_random_actions_are_zero():
    scores = normalised(RUNS["cart"])
    assert scores is not None
    assert random_return(RUNS["cart"]) == 10.0
    np.testing.assert_allclose(scores["ppo"], 1.0)
    np.testing.assert_allclose(scores["eggroll"], [1.8, 2.0, 1.6, 1.8])
    assert normalised(RUNS["hopeless"]) is None
    assert normalised({"eggroll": RUNS["cart"]["eggroll"]}) is None


def test_tasks_that_cannot_be_normalised_are_left_out_of_the_whole():
    tasks, whole = over_all(RUNS)
    assert tasks == ["cart"]
    assert whole["ppo"].value == 1.0 and whole["eggroll"].value == pytest.approx(1.8)
    assert over_all({"hopeless": RUNS["hopeless"]}) == ([], {})
    # A method that is missing on one of the tasks has no figure over all of them.
    both = {"cart": RUNS["cart"], "other": {"ppo": made(60.0, 60, 60, 60)}}
    assert over_all(both)[0] == ["cart", "other"] and set(over_all(both)[1]) == {"ppo"}


def test_the_table_and_the_picture_hold_every_task(tmp_path):
    text = table(RUNS, 5.0)
    assert "after 5 s of training" in text and "of 4 seeds" in text
    assert "| task | random | EGGROLL | OpenES | PPO |" in text
    assert f"| cart | 10 | 100 [{final(RUNS['cart']['eggroll']).low:.4g}, " in text
    assert "| hopeless | 10 | 20 [20, 20] | 10 [10, 10] |" in text
    assert "| all of: cart; PPO is 1 | 0 | 1.8 [" in text
    assert "| cart | 1,000 | 1,000 | 500 |" in text
    draw(RUNS, 5.0, tmp_path / "runs.png")
    assert (tmp_path / "runs.png").stat().st_size > 10_000
    assert figures(RUNS)["cart"]["ppo"] == [60.0, 60.0, 60.0]


def test_a_method_that_failed_is_named_in_the_table():
    runs = {"cart": {**RUNS["cart"], "ppo": []}}
    assert "| failed |" in table(runs, 5.0)


@pytest.fixture
def commands(monkeypatch):
    """What would be run; a run that is asked for is there afterwards."""
    made_so_far = []

    def command(*words):
        out = words[words.index("--out") + 1]
        if words[words.index("--method") + 1] == "openes" and "hard" in words:
            raise subprocess.CalledProcessError(2, words)
        made_so_far.append(words)
        from pathlib import Path

        if not Path(out).exists():
            write(Path(out), made(float(len(made_so_far)))[0])

    monkeypatch.setattr(control, "command", command)
    return made_so_far


def test_every_run_is_the_command_that_users_type(tmp_path, commands):
    options = {("CartPole-v1", "eggroll"): ("--pop-size", "64")}
    given = {"tasks": ("CartPole-v1", "hard"), "seconds": 3.0, "seeds": 2, "options": options}
    found = control.run(str(tmp_path), **given)
    assert len(commands) == 2 * 3 + 2 * 2
    assert commands[0] == (
        *("rl", "--env", "CartPole-v1", "--method", "eggroll", "--pop-size", "64"),
        *("--seconds", "3", "--eval-every", "0.1", "--seed", "0"),
        *("--out", str(tmp_path / "CartPole-v1" / "eggroll" / "seed-0"), "--no-gif"),
    )
    seeds = [words[words.index("--seed") + 1] for words in commands[:6]]
    assert seeds == ["0"] * 3 + ["1"] * 3  # methods side by side
    assert "openes" not in found["returns"]["hard"]
    assert "failed" in (tmp_path / "control.md").read_text()
    assert (tmp_path / "control.png").exists()
    assert control.run(str(tmp_path), **given) == found


def test_settings_come_from_searches(tmp_path):
    best = control.place(tmp_path, "my.mod:score", "ppo") / "best.json"
    assert best.parent.parent.name == "my.mod-score"
    best.parent.mkdir(parents=True)
    best.write_text(json.dumps({"options": ["--ppo.lr", "0.1"]}))
    found = control.settings(["my.mod:score", "CartPole-v1"], control.METHODS, tmp_path)
    assert found["my.mod:score", "ppo"] == ("--ppo.lr", "0.1")
    assert found["my.mod:score", "openes"] == ()
    assert found["CartPole-v1", "eggroll"] == control.usual("CartPole-v1", "openes")
    assert "--seconds" not in found["CartPole-v1", "eggroll"]
    given = found["CartPole-v1", "ppo"]
    assert given[given.index("--ppo.lr") + 1] == str(TASKS["CartPole-v1"].lr)
    assert "--normalise" in given


@pytest.mark.slow
def test_it_runs_methods_and_goes_on(tmp_path):
    methods = ("eggroll", "openes")
    size = ("--pop-size", "8", "--width", "8", "--layers", "1", "--eval-episodes", "4", "--no-gif")
    run = lambda: control.run(str(tmp_path), ("CartPole-v1",), methods, 3.0, 1, common=size)
    found, metrics = run(), tmp_path / "CartPole-v1" / "openes" / "seed-0" / "metrics.jsonl"
    assert set(found["returns"]["CartPole-v1"]) == set(methods)
    written = metrics.stat().st_mtime_ns
    assert run() == found and metrics.stat().st_mtime_ns == written
