"""Objectives: every member is scored with its own weights, and failures cost one member each."""

import os
import signal
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import springroll as sr
from springroll.envs import objective as objective_members
from springroll.envs.objective import open_objective
from springroll.envs.objective_weights import packed, shapes, unpacked
from springroll.envs.python_calls import pair_seeds
from springroll.errors import InputError
from springroll.evolve.members import evaluate
from springroll.tasks.failures import Failures, reason
from tests.envs import objective_functions as functions

HERE = Path(__file__).with_name("objective_functions.py")
POP = 24


def opened(function, **options):
    return open_objective(f"{HERE}:{function}", **({"workers": 2, "timeout": 20.0} | options))


@pytest.fixture(scope="module")
def bad():
    """One pool whose calls fail as their seeds say, quickly."""
    objective = opened("misbehaves", timeout=2.0)
    yield objective
    objective.close()


@pytest.fixture(scope="module")
def strategy():
    return sr.eggroll(pop_size=POP, sigma=0.1, rank=2, optimizer=optax.sgd(1.0))


@pytest.fixture(scope="module")
def state(strategy):
    first = functions.initial_weights(0)
    return strategy.init(jax.random.key(0), jax.tree.map(jnp.asarray, first))


def as_jax(params):
    return -jnp.sum(
        jnp.square(jnp.asarray(functions.INPUTS) @ params["a"] - 1 + params["b"][0][None])
    )


def test_members_are_scored_with_their_weights_whatever_the_processes(strategy, state):
    members, seeds = strategy.ask(state), pair_seeds(0, 0, POP, 2, 2)
    expected = evaluate(as_jax, state, members)
    for workers in (1, 3):
        objective = opened("distance", workers=workers)
        found, figures = objective.evaluate(state.params, members, seeds)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        assert found.dtype == np.float32 and figures == {"calls": 2 * POP, "unscored": 0}
        assert objective.failures.counts == {} and objective.failures.line == ""
        centre = objective.unperturbed(state.params, [3, 4, 5])
        np.testing.assert_allclose(centre, [as_jax(state.params)] * 3, rtol=1e-6)
        objective.close()


def test_chunks_of_members_are_the_members(strategy, state):
    members = strategy.ask(state)
    whole = [*objective_members.member_weights(state.params, members)]
    assert [start for start, _ in whole] == [0]
    size = sum(x.nbytes for x in jax.tree.leaves(state.params))
    for pairs in (1, 5, 7, 11):  # of 12, some of which leave a rest
        parts = [*objective_members.member_weights(state.params, members, 1, 2 * pairs * size)]
        counts = [len(leaves[0]) for _, leaves in parts]
        assert sum(counts) == POP and max(counts) <= 2 * pairs and len(parts) > 1
        assert [start for start, _ in parts] == [sum(counts[:i]) for i in range(len(parts))]
        for leaf, expected in enumerate(whole[0][1]):
            got = np.concatenate([leaves[leaf] for _, leaves in parts])
            np.testing.assert_allclose(got, expected, atol=1e-6)
    few = [*objective_members.member_weights(state.params, members, 6, 1)]
    assert [len(leaves[0]) for _, leaves in few] == [6] * (POP // 6)
    plus, minus = whole[0][1][0][0::2], whole[0][1][0][1::2]
    middle = np.broadcast_to(np.asarray(state.params["a"]), plus.shape)
    np.testing.assert_allclose((plus + minus) / 2, middle, atol=1e-6)


def test_calls_are_apart_and_random_numbers_come_from_the_seed(strategy, state):
    objective = opened("without_a_seed", initial=f"{HERE}:initial_weights", seed=3)
    first = objective.initial(3)
    assert jax.tree.structure(first) == jax.tree.structure(functions.initial_weights(3))
    np.testing.assert_array_equal(first["a"], functions.initial_weights(3)["a"])
    assert {x.dtype for x in jax.tree.leaves(first)} == {jnp.dtype("float32")}
    again = objective.unperturbed(first, [0] * 4)
    np.testing.assert_allclose(again, [2 * float(first["a"].sum()) + 1.5] * 4, rtol=1e-5)
    objective.close()
    found = []
    for workers in (1, 2):
        drawing = opened("draws", workers=workers)
        seeds = pair_seeds(0, 7, POP, 2, 1)
        found.append(drawing.evaluate(drawing.initial(0), strategy.ask(state), seeds)[0])
        drawing.close()
    np.testing.assert_array_equal(*found)
    np.testing.assert_array_equal(found[0][0::2], found[0][1::2])  # pairs meet the same numbers
    assert len(set(found[0])) == POP // 2


def test_a_call_that_fails_costs_its_member(bad, strategy, state, capfd):
    seeds = np.zeros((POP, 1), np.int64)
    wrong = {2: 1, 5: 2, 6: 3, 9: 4, 10: 5, 13: 6, 14: 7, 17: 8, 20: 9, 23: 2}
    wrong |= {0: 11, 3: 12, 7: 13, 21: 14}
    for member, seed in wrong.items():
        seeds[member] = seed
    found, figures = bad.evaluate(state.params, strategy.ask(state), seeds)
    assert np.flatnonzero(np.isnan(found)).tolist() == sorted(wrong)
    expected = np.asarray(evaluate(as_jax, state, strategy.ask(state)))
    fine = ~np.isnan(found)
    np.testing.assert_allclose(found[fine], expected[fine], rtol=1e-5)
    assert bad.failures.counts == {"crashed": 2, "timeout": 1, "raised": 3, "nan": 4, "wrong": 4}
    assert figures["unscored"] == len(wrong)
    line = bad.failures.line
    assert line.startswith("calls that could not be scored: 2 crashed; 1 took too long, the")
    assert "3 raised, the first: KeyError: 'a key" in line and "(objective_functions.py:" in line
    assert "misbehaves returned a number too large for a float; expected" in line
    assert "misbehaves returned None; expected a finite float" in line and "\n" not in line
    assert "this must not reach the pipe" in capfd.readouterr().err
    moved, metrics = strategy.tell(state, strategy.ask(state), jnp.asarray(found))
    assert int(metrics["dropped"]) == len(wrong) and np.isfinite(moved.params["a"]).all()
    assert np.isnan(bad.unperturbed(state.params, [0, 2, 0])).tolist() == [False, True, False]


def test_a_killed_process_costs_the_call_it_was_at(strategy, state, monkeypatch, tmp_path):
    asleep = tmp_path / "asleep"
    monkeypatch.setenv("ASLEEP", str(asleep))
    objective = opened("misbehaves", timeout=30.0, workers=1)
    pid = objective._workers[0].pid
    assert pid is not None
    seeds = np.zeros((POP, 1), np.int64)
    seeds[4] = 10  # says that it sleeps, until it is killed

    def kill():
        while not asleep.exists():
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    found, _ = objective.evaluate(state.params, strategy.ask(state), seeds)
    assert np.flatnonzero(np.isnan(found)).tolist() == [4]
    assert objective.failures.counts == {"crashed": 1} and objective._workers[0].pid != pid
    restarted = objective._workers[0].pid
    assert restarted is not None
    os.kill(restarted, signal.SIGKILL)  # between calls it costs nobody
    found, _ = objective.evaluate(state.params, strategy.ask(state), 0 * seeds)
    assert np.isfinite(found).all() or objective.failures.counts["crashed"] == 2
    objective.close()


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (
            "says_nan",
            {},
            "cannot score its first weights: .* returned nan; expected",
        ),
        ("dies_at_once", {}, "cannot score its first weights: it crashed"),
        ("hangs", {"timeout": 0.5}, "cannot score its first weights: it took more than"),
        ("takes_nothing", {}, r"takes no argument; expected \(weights\) or \(weights, seed\)"),
        ("absent", {}, "has no function 'absent'"),
        ("distance", {"initial": "absent"}, "no function of initial weights 'absent'; expected"),
        ("distance", {"initial": f"{HERE}:absent"}, "has no function 'absent'"),
        (
            "distance",
            {"initial": f"{HERE}:float64"},
            "float64: layer/w is float64; expected float3",
        ),
        ("distance", {"initial": f"{HERE}:raises"}, r"it raised OSError: no such .*\(objective_f"),
        ("distance", {"initial": f"{HERE}:hanging_start", "timeout": 0.5}, "it took more than"),
        ("distance", {"workers": 0}, "workers is 0; it must be from 1 to 1,024"),
    ],
)
def test_what_cannot_work_is_one_line_before_anything_runs(function, options, message):
    with pytest.raises(InputError, match=message) as error:
        opened(function, **({"workers": 1} | options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"layer": {"w": np.zeros((2, 2), np.int32)}}, "mine: layer/w is int32; expected float32"),
        ({"w": [1.0, 2.0]}, "mine: w/0 is of type float; expected a float32 array"),
        ({3: np.zeros(2, np.float32)}, "mine has the key 3; expected names, which are strings"),
        ({}, "mine returned no weights; expected a dict of float32 arrays"),
        (None, "mine: the weight is of type NoneType"),
        ([np.full(3, np.inf, np.float32)], "mine: 0 holds NaN or infinity; expected finite"),
        ({"w": np.zeros((0, 3), np.float32)}, "mine: w is empty; expected finite numbers"),
    ],
)
def test_weights_that_cannot_be_evolved(weights, message):
    with pytest.raises(InputError, match=message):
        packed(weights, "mine")


def test_start_weights_beside_the_objective_are_asked_for(tmp_path):
    (tmp_path / "alone.py").write_text("def f(weights): return 1.0")
    with pytest.raises(
        InputError, match=r"has no function 'initial_weights'; write one .*--initial"
    ):
        open_objective(f"{tmp_path}/alone.py:f")


def test_a_first_generation_without_a_score_ends_the_run(strategy, state):
    objective = opened("fails_but_for_the_centre", workers=1)
    with pytest.raises(
        InputError, match="could not score a single member: 24 raised, the first: V"
    ):
        objective.evaluate(state.params, strategy.ask(state), pair_seeds(0, 0, POP, 2, 1))
    objective.close()


def test_the_source_is_part_of_what_a_run_is(tmp_path):
    path = tmp_path / "f.py"
    found = []
    for last in ("1.0", "1.0", "2.0"):
        path.write_text(
            "import numpy as np\ninitial_weights = lambda: [np.ones(2, 'float32')]\n"
            f"def f(weights): return {last}\n"
        )
        objective = open_objective(f"{path}:f", workers=1)
        objective.close()
        found.append(objective.identity)
    assert found[0] == found[1] and found[0]["source"] != found[2]["source"]


def test_weights_come_back_as_they_were():
    weights = {"z": np.float32(2) * np.ones((2, 3), np.float32), "a": [(np.float32(1),), {}]}
    layout, payload = packed(weights, "mine")
    back = unpacked(layout, bytearray(payload))
    assert jax.tree.structure(back) == jax.tree.structure(weights)
    for x, y in zip(jax.tree.leaves(back), jax.tree.leaves(weights), strict=True):
        np.testing.assert_array_equal(x, y)
    assert [*shapes(layout)] == [x.shape for x in jax.tree.leaves(weights)] == [(), (2, 3)]
    back["z"][0, 0] = 5  # whoever is given weights may write to them
    with pytest.raises(ValueError, match="8 numbers for a layout of 7"):
        unpacked(layout, payload + bytes(4))


def test_seeds_are_shared_by_a_pair_and_new_in_every_generation():
    seeds = pair_seeds(5, 2, 8, 2, 3)
    assert seeds.shape == (8, 3) and (seeds >= 0).all() and (seeds < 2**31).all()
    np.testing.assert_array_equal(seeds[0::2], seeds[1::2])
    assert len(np.unique(seeds)) == 12
    assert not np.intersect1d(seeds, pair_seeds(5, 3, 8, 2, 3)).size
    assert len(np.unique(pair_seeds(5, 2, 8, 1, 3))) == 24
    np.testing.assert_array_equal(pair_seeds(5, 2, 4, 2, 3), seeds[:4])


def test_failures_are_told_in_one_line():
    failures = Failures("calls")
    assert failures.line == "" and failures.total == 0
    failures.add("raised", "ValueError: b (f.py:1)")
    failures.add("crashed", count=2)
    other = Failures("calls")
    other.add("raised", "KeyError: c (f.py:2)", 3)
    failures.merge(other)
    told = "2 crashed; 4 raised, the first: ValueError: b (f.py:1)"
    assert failures.line == f"calls that could not be scored: {told}" and failures.total == 6
    assert reason("crashed") == "it crashed" and reason("nan", "f returned nan") == "f returned nan"
    assert reason("timeout", "more than 5 s") == "it took more than 5 s"
    assert reason("raised", "KeyError: 3") == "it raised KeyError: 3"
