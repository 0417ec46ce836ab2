"""`springroll rl` from the command line: learning, resuming, replaying, refusing."""

import json
import signal

import pytest

from springroll.cli.main import main
from tests.cli.test_killed import wait_for
from tests.cli.tiny import files, start

GENERATIONS = 6
TINY = "--width 8 --layers 1 --pop-size 8 --eval-episodes 6 --log-every 0 --eval-every 0"
MINE = """
import numpy as np

def initial_weights(seed):
    return {"w": np.zeros((2, 3), np.float32)}

def closeness(weights, seed):
    if seed % 11 == 3:
        raise RuntimeError("an unlucky seed")
    return -float(np.square(weights["w"] - 1).sum())

def nothing(weights, seed):
    return float("nan")

def matrix(weights, seed):
    return weights["w"]

def hangs(weights, seed):
    while True:
        pass

class Policy:
    init = staticmethod(lambda key: {"w": np.zeros((4, 2), np.float32)})
    apply = staticmethod(lambda params, observation: observation @ params["w"])

def policy(inputs, outputs):
    return Policy

def short_policy(inputs, outputs):
    return type("Short", (Policy,), {"apply": staticmethod(lambda params, x: x)})
"""


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    path = tmp_path_factory.mktemp("mine") / "mine.py"
    path.write_text(MINE)
    return path


def command(out, *more, env="CartPole-v1", generations=GENERATIONS):
    options = (*TINY.split(), "--generations", str(generations))
    return ["rl", "--env", env, "--out", str(out), *options, *more]


def newest(folder, generation=GENERATIONS):
    return (folder / "checkpoints" / f"{generation:09d}.safetensors").read_bytes()


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def figures(folder, name):
    rows = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


def test_a_run_writes_what_it_came_to(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(command(out, "--sigma-half-life", "6.58", "--ranks")) == 0
    said = capsys.readouterr()
    assert "CartPole-v1: 4 observations, discrete 2; 8 members" in said.err
    assert "eval return" in said.out and "episode  " in said.out
    found = summary(out)
    for name in ("eval_return", "random_return", "env_steps_per_second", "members_per_second"):
        assert found[name] > 0
    assert found["generations"] == GENERATIONS and found["seconds"] > 0
    assert found["env_steps"] == sum(round(8 * x) for x in figures(out, "train_length"))
    assert figures(out, "sigma")[-1] == pytest.approx(0.1 * 2 ** (-(GENERATIONS - 1) / 6.58))
    for name in ("curve.png", "policy.gif"):
        assert (out / name).stat().st_size > 3_000
    assert main(["eval", str(out), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["eval_return"] == found["eval_return"] and again["episodes"] == 6
    assert main(["eval", str(out), "--best", "--episodes", "20"]) == 0
    assert "20 episodes" in capsys.readouterr().out
    assert main(["explain", str(out)]) == 0
    assert "hidden/0/weight" in capsys.readouterr().out
    assert main(["replay", str(out)]) == 0
    assert f"equal to the checkpoint of generation {GENERATIONS}" in capsys.readouterr().out
    for command_of_text in (["sample", str(out)], ["export", str(out), str(tmp_path / "model")]):
        assert main(command_of_text) == 2
        assert "springroll rl" in capsys.readouterr().err
    before = files(tmp_path)  # a folder with a run is not overwritten
    assert main(command(out)) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(command(out, "--resume", "--rank", "2")) == 2
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "options",
    [
        "--normalise --episodes 2 --rank 2",
        "--method openes --optimizer sgd --no-gif",
    ],
)
@pytest.mark.slow
def test_it_resumes_to_the_same_bytes(tmp_path, options):
    more = options.split()
    assert main(command(tmp_path / "whole", *more, env="Grid-5x5")) == 0
    assert main(command(tmp_path / "parts", *more, env="Grid-5x5", generations=2)) == 0
    assert main(command(tmp_path / "parts", *more, "--resume", env="Grid-5x5")) == 0
    assert newest(tmp_path / "parts") == newest(tmp_path / "whole")
    assert (tmp_path / "parts" / "journal").read_bytes()[100:] == (
        tmp_path / "whole" / "journal"
    ).read_bytes()[100:]
    assert (tmp_path / "whole" / "policy.gif").exists() != ("--no-gif" in more)


@pytest.mark.slow
def test_kill_9_leaves_no_trace(tmp_path):
    many = 100
    first = start(command(tmp_path / "run", "--no-gif", env="Grid-5x5", generations=many))
    wait_for(first, tmp_path / "run", 15)
    first.kill()
    first.communicate()
    assert first.returncode == -signal.SIGKILL
    again = command(tmp_path / "run", "--no-gif", "--resume", env="Grid-5x5", generations=many)
    assert main(again) == 0
    whole = command(tmp_path / "whole", "--no-gif", env="Grid-5x5", generations=many)
    assert main(whole) == 0
    assert newest(tmp_path / "run", many) == newest(tmp_path / "whole", many)


def test_a_python_objective_is_learnt_and_an_unlucky_call_costs_a_member(tmp_path, mine, capsys):
    more = ("--workers", "1", "--sigma", "0.3", "--lr", "0.3", "--episodes", "3")
    out = tmp_path / "run"
    assert main(command(out, *more, env=f"{mine}:closeness", generations=15)) == 0
    said = capsys.readouterr().err
    assert "raised" in said and "an unlucky seed" in said
    assert summary(out)["dropped"] > 0
    returns = figures(out, "train_return")
    assert returns[-1] > returns[0]
    assert "random_return" not in summary(out)


def test_a_policy_of_the_users_own(tmp_path, mine, capsys):
    assert main(command(tmp_path / "run", "--policy", f"{mine}:policy", "--no-gif")) == 0
    assert main(["explain", str(tmp_path / "run")]) == 0
    assert "float32[4,2]" in capsys.readouterr().out


def test_it_lists_every_environment(capsys):
    assert main(["rl", "--list"]) == 0
    said = capsys.readouterr().out
    for id in ("CartPole-v1", "brax-ant", "navix-DoorKey-8x8", "kinetix-l-hard_pinball"):
        assert id in said


@pytest.mark.slow  # `tests/rl/test_tuning_runs.py` searches without training
def test_a_search_prints_every_trial_and_goes_on(tmp_path, capsys):
    search = ["rl", "--tune", "--trials", "2", "--factor", "2", "--env", "Grid-5x5"]
    small = "--width 8 --layers 1 --pop-size 8 --rank 2 --episodes 2 --eval-episodes 6 --devices 1"
    given = [*search, *small.split(), "--generations", "2", "--out", str(tmp_path / "search")]
    assert main(given) == 0
    said = capsys.readouterr().out
    assert "best: springroll rl --env Grid-5x5" in said
    trials = (tmp_path / "search" / "trials.jsonl").read_text()
    records = [json.loads(line) for line in trials.splitlines()]
    assert len(records) == 2
    for record in records:
        found = summary(tmp_path / "search" / f"trial-{record['trial']:03d}")
        assert found["generations"] == 2 and found["eval_return"] == record["score"]
    assert main([*given, "--resume"]) == 0
    assert (tmp_path / "search" / "trials.jsonl").read_text() == trials
    assert main(given) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--env CartPole-v2", "CartPole-v1"),
        ("--env navix-DoorKey-8x9", "navix-DoorKey-8x8"),
        ("--env nothing:at_all", "no module 'nothing'"),
        ("--env MINE:missing", "no function 'missing'"),
        ("--env MINE:nothing", "nan"),
        ("--env MINE:matrix", "shape"),
        ("--env MINE:hangs --timeout 1", "took more than 1 s"),
        ("--policy MINE:short_policy", "expected an array of shape (2,)"),
        ("--policy nothing", "expected module:function"),
        ("--pop-size 7", "even number"),
        ("--sigma 0", "sigma is 0.0"),
        ("--rank 0", "rank is 0"),
        ("--episodes 0", "episodes is 0"),
        ("--method ppo --env MINE:closeness", "is none"),
        ("--recipe ant-opens", "did you mean"),
        ("--tune", "--seconds"),
        ("--tune --seconds 1 --trials many", "whole number"),
        ("--tune --seconds 1 --trials 1", "trials is 1; it must be from 2 to 1,000,000"),
    ],
)
def test_what_is_wrong_is_one_line_and_touches_nothing(tmp_path, mine, capsys, options, said):
    before = files(tmp_path)
    argv = options.replace("MINE", str(mine)).split()
    assert main(["rl", *argv, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert said in error[-1] and error[-1].startswith("springroll: ")
    assert files(tmp_path) == before
