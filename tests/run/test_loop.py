"""The loop: budgets, what it writes, and the same bytes however it was stopped and resumed."""

import io
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console

from springroll.errors import InputError
from springroll.run import session
from springroll.run.checkpoint import load_newest, saved
from springroll.run.config import RunConfig
from springroll.run.folder import RunFolder
from springroll.run.journal import Journal
from springroll.run.loop import run
from springroll.run.metrics import read_rows
from springroll.run.task import Training
from tests.run.toy import POP, batch, evaluate, tell, toy

GENERATIONS = 30


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """Drawing and TensorBoard have tests of their own and cost half a second each."""
    monkeypatch.setattr(session, "draw_curve", lambda *_, **__: None)
    monkeypatch.setattr("springroll.run.metrics._board", lambda *_: None)


def train(path, task=None, **changes):
    """Start or go on with a run; what it printed and its result."""
    config = RunConfig(**{"generations": GENERATIONS, "log_every": 0.0, **changes})
    new = not (path / "config.json").exists()
    folder = RunFolder.create(path, config) if new else RunFolder.resume(path)
    out = io.StringIO()
    result = run(config, task or toy(), folder, console=Console(file=out, width=200))
    return result, out.getvalue()


def final_bytes(path, generations=GENERATIONS):
    names = ("journal", f"checkpoints/{generations:09d}.safetensors")
    return [(path / name).read_bytes() for name in names]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The final bytes of runs that nothing happened to, by whether members keep a carry."""
    paths = {carry: tmp_path_factory.mktemp("undisturbed") for carry in (True, False)}
    for carry, path in paths.items():
        train(path, toy(carry=carry))
    return {carry: final_bytes(path) for carry, path in paths.items()}


class Boom(Exception):
    pass


def exploding_at(generation, **changes):
    """The toy, whose data ends in an exception."""

    def explode(g):
        if g == generation:
            raise Boom
        return batch(g)

    return toy(batch=explode, **changes)


def test_a_run_learns_and_writes_everything(tmp_path, monkeypatch):
    result, printed = train(tmp_path, toy(summary={"unigram_bits_per_byte": 4.5}))
    assert result.generation == GENERATIONS and result.exit_code == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["generations"] == GENERATIONS
    assert summary["tokens"] == GENERATIONS * 100
    assert summary["unigram_bits_per_byte"] == 4.5
    assert summary["valid_bits_per_byte"] == pytest.approx(
        float(jnp.sum(result.state["weights"] ** 2))
    )
    assert summary["valid_bits_per_byte"] < 5 / 2
    needed = {"train_bits_per_byte", "tokens_per_second", "peak_memory_bytes", "seconds"}
    assert needed <= summary.keys()
    assert all(summary[name] > 0 for name in needed)
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert rows[0] == {**rows[0], "generation": 0, "valid_bits_per_byte": 5.0}
    assert [row["generation"] for row in rows if "train_bits_per_byte" in row] == list(range(1, 31))
    assert "generation 30  bits/byte" in printed and "tokens/s" in printed
    with Journal.read_only(tmp_path / "journal") as journal:
        assert len(journal) == GENERATIONS


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path, undisturbed):
    train(tmp_path / "a")
    assert final_bytes(tmp_path / "a") == undisturbed[True]
    train(tmp_path / "b", toy(seed=1), seed=1)
    assert final_bytes(tmp_path / "b") != undisturbed[True]


@pytest.mark.parametrize("carry", [True, False])
@pytest.mark.parametrize("stops", [[1], [29], [3, 4, 17]])
def test_runs_in_pieces_end_with_the_same_bytes(tmp_path, undisturbed, stops, carry):
    for stop in stops:
        train(tmp_path, toy(carry=carry), generations=stop)
    train(tmp_path, toy(carry=carry))
    assert final_bytes(tmp_path) == undisturbed[carry]


@pytest.mark.parametrize("carry", [True, False])
def test_a_run_that_died_between_checkpoints_ends_with_the_same_bytes(
    tmp_path, undisturbed, monkeypatch, carry
):
    monkeypatch.setattr(session, "SAVE_SHARE", 0.0)  # one checkpoint at first, then none
    for generation in (9, 21):
        with pytest.raises(Boom):
            train(tmp_path, exploding_at(generation, carry=carry))
    with Journal.read_only(tmp_path / "journal") as journal:
        # The batch is fetched ahead: generation 20 was under way when that of 21 failed.
        assert len(journal) == 20
    before = (tmp_path / "journal").read_bytes()
    _, printed = train(tmp_path, toy(carry=carry))
    assert (tmp_path / "journal").read_bytes().startswith(before)
    assert ("generations behind the journal" in printed) == carry
    assert "differs" not in printed
    assert final_bytes(tmp_path) == undisturbed[carry]


def test_without_carry_nothing_is_evaluated_again(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "SAVE_SHARE", 0.0)
    with pytest.raises(Boom):
        train(tmp_path, exploding_at(20, carry=False))
    task, count = toy(carry=False), []
    counting = replace(task, evaluate=lambda *a: [count.append(1), task.evaluate(*a)][1])
    train(tmp_path, counting)
    assert len(count) == GENERATIONS - 19


def test_a_torn_journal_is_said_and_made_whole(tmp_path, undisturbed):
    train(tmp_path, generations=12)
    journal = tmp_path / "journal"
    journal.write_bytes(journal.read_bytes()[:-3])
    _, printed = train(tmp_path)
    assert "the last journal record was torn: dropped" in printed
    assert "000000012.json, which is later than generation 11" in printed
    assert final_bytes(tmp_path) == undisturbed[True]


@pytest.mark.parametrize("lost", [1, 2])
def test_corrupted_checkpoints_fall_back_and_say_so(tmp_path, undisturbed, lost):
    train(tmp_path, generations=8)
    train(tmp_path, generations=12)
    for sidecar in saved(tmp_path / "checkpoints")[-lost:]:
        sidecar.with_suffix(".safetensors").write_bytes(b"garbage")
    _, printed = train(tmp_path)
    assert printed.count("its checksum does not hold; falling back") == lost
    assert final_bytes(tmp_path) == undisturbed[True]


def test_a_lost_journal_restarts_the_run(tmp_path, undisturbed):
    train(tmp_path, generations=12)
    (tmp_path / "journal").unlink()
    _, printed = train(tmp_path)
    assert "which is later than generation 0" in printed
    assert final_bytes(tmp_path) == undisturbed[True]


def test_where_the_fitness_comes_out_otherwise_the_journal_is_believed(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "SAVE_SHARE", 0.0)
    with pytest.raises(Boom):
        train(tmp_path, exploding_at(20))

    def another_machine(state, members, carry, data):
        fitness, carry, metrics = evaluate(state, members, carry, data)
        return np.nextafter(np.asarray(fitness), np.float32(0)), carry, metrics

    before = (tmp_path / "journal").read_bytes()
    _, printed = train(tmp_path, toy(evaluate=another_machine))
    assert printed.count("the fitness computed now is not the journal's") == 1
    assert (tmp_path / "journal").read_bytes().startswith(before)


def test_a_budget_that_is_spent_changes_nothing(tmp_path):
    train(tmp_path)
    before = final_bytes(tmp_path)
    rows = read_rows(tmp_path / "metrics.jsonl")
    result, printed = train(tmp_path)
    assert f"going on with {tmp_path} at generation 30" in printed
    assert result.generation == GENERATIONS
    assert final_bytes(tmp_path) == before
    assert read_rows(tmp_path / "metrics.jsonl") == rows


def test_a_run_of_one_step_has_a_speed_and_says_step(tmp_path):
    result, printed = train(tmp_path, toy(iteration="step", validate=None), generations=1)
    assert result.summary["tokens_per_second"] > 0 and result.summary["members_per_second"] > 0
    assert printed.count("step 1  bits/byte") == 1 and "generation" not in printed


@pytest.mark.parametrize("budget", [{"generations": 0}, {"seconds": 0.0}])
def test_a_budget_of_nothing_trains_nothing(tmp_path, budget):
    result, _ = train(tmp_path, **budget)
    assert result.generation == 0
    assert json.loads((tmp_path / "summary.json").read_text())["valid_bits_per_byte"] == 5.0
    assert [path.stem for path in saved(tmp_path / "checkpoints")] == ["000000000"]


def test_sharded_members_resume_to_the_same_bytes(tmp_path, monkeypatch):
    mesh = Mesh(np.array(jax.devices()), ("pop",))

    def init():
        state, carry = toy().init()
        everywhere = jax.device_put(state, NamedSharding(mesh, P()))
        return everywhere, jax.device_put(carry, NamedSharding(mesh, P("pop")))

    train(tmp_path / "a", toy(init=init))
    monkeypatch.setattr(session, "SAVE_SHARE", 0.0)
    with pytest.raises(Boom):
        train(tmp_path / "b", exploding_at(20, init=init))
    result, printed = train(tmp_path / "b", toy(init=init))
    assert len(result.carry.sharding.device_set) == 4
    assert "is not the journal's" not in printed
    assert final_bytes(tmp_path / "b") == final_bytes(tmp_path / "a")


def test_a_full_disk_at_a_save_is_one_line(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(session.checkpoint, "save", full)
    with pytest.raises(InputError, match=r"cannot save a checkpoint in .*: No space left"):
        train(tmp_path)


def test_a_generation_before_the_noise_of_the_last_is_let_go(tmp_path):
    """Structure: never two generations' members alive at once."""
    alive = []

    class Members:
        def __init__(self, value):
            self.value = value
            alive.append(1)
            assert len(alive) == 1

        def __del__(self):
            alive.pop()

    plain = toy()
    task = toy(
        ask=lambda state: Members(plain.ask(state)),
        evaluate=lambda state, members, *rest: plain.evaluate(state, members.value, *rest),
        tell=lambda state, members, fitness: plain.tell(state, members.value, fitness),
    )
    assert train(tmp_path, task)[0].generation == GENERATIONS


def test_metrics_after_the_resumed_generation_are_run_again(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "SAVE_SHARE", 0.0)
    with pytest.raises(Boom):
        train(tmp_path, exploding_at(20))
    assert read_rows(tmp_path / "metrics.jsonl")[-1]["generation"] == 19
    train(tmp_path)
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["generation"] for row in rows if "train_bits_per_byte" in row] == list(range(1, 31))


def test_seconds_are_counted_over_resumes_without_validation(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def slow_batch(generation):
        clock[0] += 1.0
        return batch(generation)

    def slow_validation(state, carry):
        clock[0] += 50.0
        return {"valid_bits_per_byte": 1.0}

    task = toy(batch=slow_batch, validate=slow_validation)
    result, _ = train(tmp_path, task, generations=None, seconds=10.0)
    # The first batch is fetched before generation 0, and each generation fetches the next.
    assert result.generation == 9
    assert result.summary["seconds"] == 10.0
    result, _ = train(tmp_path, task, generations=None, seconds=15.0)
    assert result.generation == 13
    assert result.summary["tokens_per_second"] == 100.0


def test_validation_takes_a_tenth_of_the_time_at_most(tmp_path, monkeypatch):
    clock, count = [0.0], []
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def slow_batch(generation):
        clock[0] += 1.0
        return batch(generation)

    def slow_validation(state, carry):
        count.append(1)
        clock[0] += 5.0
        return {"valid_bits_per_byte": 1.0}

    task = toy(batch=slow_batch, validate=slow_validation)
    train(tmp_path, task, generations=200, eval_every=1.0)
    assert 4 <= len(count) <= 6  # at first, at the end, and 200 s x 0.1 / 5 s between


def test_members_without_a_finite_fitness_are_counted(tmp_path):
    def some_lost(state, members, carry, data):
        fitness, carry, metrics = evaluate(state, members, carry, data)
        return fitness.at[3].set(jnp.nan).at[5].set(jnp.inf), carry, metrics

    result, printed = train(tmp_path, toy(evaluate=some_lost))
    assert result.summary["dropped"] == 2 * GENERATIONS
    assert bool(jnp.isfinite(result.state["weights"]).all())
    assert "dropped 60" in printed


def test_without_any_finite_fitness_the_run_stops_and_says_so(tmp_path):
    def all_lost(state, members, carry, data):
        fitness, carry, metrics = evaluate(state, members, carry, data)
        lost = jnp.where(state["generation"] < 4, fitness, jnp.nan)
        return lost, carry, metrics

    with pytest.raises(InputError, match=f"generation 4: the fitness of all {POP} members is NaN"):
        train(tmp_path, toy(evaluate=all_lost))
    with Journal.read_only(tmp_path / "journal") as journal:
        assert len(journal) == 4
    assert saved(tmp_path / "checkpoints")


def test_integer_fitness_is_never_dropped(tmp_path):
    def integers(state, members, carry, data):
        fitness, carry, metrics = evaluate(state, members, carry, data)
        return jnp.round(fitness * 16).astype(jnp.int32), carry, metrics

    def tell_integers(state, members, fitness):
        return tell(state, members, fitness.astype(np.float32))

    result, _ = train(tmp_path, toy(evaluate=integers, tell=tell_integers))
    assert result.summary["dropped"] == 0
    with Journal.read_only(tmp_path / "journal") as journal:
        assert journal.read(0).fitness.dtype == np.int32


def test_another_architecture_is_refused_and_nothing_overwritten(tmp_path):
    train(tmp_path, generations=3)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match=r"state/weights is float32\[5\] there and float32\[6\]"):
        train(tmp_path, toy(width=6))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_another_corpus_or_another_runs_checkpoint_is_refused(tmp_path):
    train(tmp_path / "a", toy(identity={"corpus": "1234"}), generations=3)
    with pytest.raises(InputError, match=r"the corpus is 5678, but the run in .* began with 1234"):
        train(tmp_path / "a", toy(identity={"corpus": "5678"}))
    RunFolder.create(tmp_path / "b", RunConfig(seed=5))
    (tmp_path / "b" / "checkpoints").rmdir()
    (tmp_path / "a" / "checkpoints").rename(tmp_path / "b" / "checkpoints")
    with Journal.open(tmp_path / "b" / "journal", RunFolder.resume(tmp_path / "b").run_id) as j:
        for generation in range(3):
            j.append(generation, 0, np.zeros(POP, np.float32))
    with pytest.raises(InputError, match="are of run"):
        train(tmp_path / "b", seed=5)


def test_a_folder_in_use_is_refused(tmp_path):
    train(tmp_path, generations=3)
    with (
        Journal.open(tmp_path / "journal"),
        pytest.raises(InputError, match="is being written by another process"),
    ):
        train(tmp_path)


def test_figures_stay_on_the_device_until_a_log_is_due(tmp_path, monkeypatch):
    """Structure: besides the fitness nothing is fetched, so the host never waits for the step."""
    fetched = []
    real = jax.device_get
    monkeypatch.setattr(session.jax, "device_get", lambda x: [fetched.append(1), real(x)][1])
    train(tmp_path, log_every=1e6)
    assert len(fetched) == 1  # the last log
    row = read_rows(tmp_path / "metrics.jsonl")[-2]
    assert row["generation"] == GENERATIONS


def test_a_log_is_the_mean_since_the_last_one(tmp_path):
    def numbered(state, members, fitness):
        new, _ = tell(state, members, fitness)
        return new, {"n": float(new["generation"])}

    train(tmp_path, toy(tell=numbered), log_every=1e6, generations=9)
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["n"] for row in rows if "n" in row] == [5.0]


def test_the_checkpoint_holds_state_and_carry(tmp_path):
    result, _ = train(tmp_path)
    template = Training(result.state, result.carry)
    loaded, _ = load_newest(tmp_path / "checkpoints", template)
    assert loaded is not None
    np.testing.assert_array_equal(loaded.tree.carry, result.carry)
    np.testing.assert_array_equal(loaded.tree.state["weights"], result.state["weights"])
    assert loaded.meta["run_id"] == RunFolder.resume(tmp_path).run_id
