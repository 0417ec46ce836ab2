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
from springroll.run import checkpoint, session
from springroll.run.checkpoint import load_newest, saved
from springroll.run.config import RunConfig
from springroll.run.folder import RunFolder
from springroll.run.journal import Journal
from springroll.run.loop import run
from springroll.run.metrics import read_rows
from springroll.run.record import encode
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


def contents(path):
    return {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}


def cut_to(generations):
    def cut(journal):
        with Journal.read_only(journal) as whole:
            journal.write_bytes(journal.read_bytes()[: whole._starts[generations]])

    return cut


@pytest.mark.parametrize(
    ("lose", "left"),
    [
        (lambda journal: journal.unlink(), 0),
        (lambda journal: journal.write_bytes(b""), 0),
        (lambda journal: journal.write_bytes(journal.read_bytes()[:20]), 0),
        (cut_to(0), 0),  # the header alone
        (cut_to(7), 7),
        (lambda journal: journal.write_bytes(journal.read_bytes()[:-3]), 11),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_lost_journal_touches_nothing_and_names_the_way_out(
    tmp_path, undisturbed, lose, left, finished
):
    train(tmp_path, generations=12)
    lose(tmp_path / "journal")
    later = [*saved(tmp_path / "checkpoints"), tmp_path / "summary.json"]
    if not finished:
        later.pop().unlink()
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"but the run was further: .* restore the") as error:
        train(tmp_path)
    assert contents(tmp_path) == before and (tmp_path / "journal").exists() == (
        tmp_path / "journal" in before
    )
    later = [path for path in later if path.stem == "summary" or int(path.stem) > left]
    assert all(str(path.relative_to(tmp_path)) in str(error.value) for path in later)
    assert "\n" not in str(error.value)

    for path in later:  # the way out
        path.unlink()
    _, printed = train(tmp_path)
    assert ("the last journal record was torn: dropped" in printed) == (left == 11)
    assert final_bytes(tmp_path) == undisturbed[True]


def test_where_checkpoints_are_lost_the_summary_tells_that_the_run_was_further(tmp_path):
    train(tmp_path, generations=12)
    for path in (tmp_path / "checkpoints").iterdir():
        path.unlink()
    (tmp_path / "journal").unlink()
    with pytest.raises(InputError, match=r"is missing, but the run was further: summary\.json"):
        train(tmp_path)


def edit(path, **changes):
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | changes))


@pytest.mark.parametrize("generation", [5, 1_000_000_000, -1, 0])
@pytest.mark.parametrize("checksum", [True, False])
def test_a_checkpoint_of_another_generation_touches_nothing(tmp_path, generation, checksum):
    """With and without a checksum, which checkpoints of earlier versions have none of."""
    train(tmp_path, generations=6)
    newest = saved(tmp_path / "checkpoints")[-1]
    edit(newest, generation=generation)
    if not checksum:
        about = json.loads(newest.read_text())
        del about["checksum"]
        newest.write_text(json.dumps(about | {"format": checkpoint.FORMAT}))
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"000000006\.json was changed after it was written") as e:
        train(tmp_path)
    assert contents(tmp_path) == before and "\n" not in str(e.value)


def test_a_checkpoint_whose_counts_were_changed_touches_nothing(tmp_path):
    train(tmp_path, generations=6)
    newest = saved(tmp_path / "checkpoints")[-1]
    about = json.loads(newest.read_text())
    about["meta"]["seconds"] = 1e9
    newest.write_text(json.dumps(about))
    with pytest.raises(InputError, match="its checksum does not hold; restore it, or move it"):
        train(tmp_path)


@pytest.mark.parametrize("value", ["abc", -1, None, 2**70, [1], float("inf"), float("nan")])
def test_counts_of_an_earlier_versions_checkpoint_are_looked_at(tmp_path, value):
    train(tmp_path, generations=6)
    newest = saved(tmp_path / "checkpoints")[-1]
    about = json.loads(newest.read_text())
    del about["checksum"]
    about["meta"]["seconds"] = value
    newest.write_text(json.dumps(about | {"format": checkpoint.FORMAT}))
    with pytest.raises(InputError, match=r"has seconds .*; restore it, or move it"):
        train(tmp_path)


def test_a_journal_of_another_seed_or_type_touches_nothing(tmp_path):
    for name, change in (
        ("seed", lambda r: r._replace(seed=1)),
        ("population", lambda r: r._replace(fitness=r.fitness[:4])),
        ("dtype", lambda r: r._replace(fitness=r.fitness.astype(np.float64))),
    ):
        path = tmp_path / name
        train(path, generations=3)
        with Journal.read_only(path / "journal") as journal:
            records = [encode(change(record)) for record in journal]
            start = journal._starts[0]
        header = (path / "journal").read_bytes()[:start]
        (path / "journal").write_bytes(header + b"".join(records))
        before = contents(path)
        with pytest.raises(InputError, match="and this run of seed 0, 8 x float"):
            train(path)
        assert contents(path) == before


def test_what_refuses_a_resume_changes_no_byte(tmp_path):
    """A torn end of the journal and a new budget stay as they are until all is looked at."""
    train(tmp_path, toy(identity={"corpus": "1234"}), generations=6)
    with open(tmp_path / "journal", "ab") as file:
        file.write(b"torn")
    before = contents(tmp_path)
    with pytest.raises(InputError, match="the corpus is 5678"):
        train(tmp_path, toy(identity={"corpus": "5678"}))
    with (
        Journal.open(tmp_path / "journal"),
        pytest.raises(InputError, match="is being written by another process"),
    ):
        train(tmp_path)
    (tmp_path / "metrics.jsonl").rename(tmp_path / "kept")
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(InputError, match=r"cannot read .*metrics\.jsonl: Is a directory"):
        train(tmp_path)
    (tmp_path / "metrics.jsonl").rmdir()
    (tmp_path / "kept").rename(tmp_path / "metrics.jsonl")
    assert contents(tmp_path) == before


def test_other_things_among_the_checkpoints_are_left_alone(tmp_path, undisturbed):
    train(tmp_path, generations=6)
    strays = ("5.backup", "000000099.json.old", "\u0661.json", "000000003.json")
    for name in strays:
        (tmp_path / "checkpoints" / name).mkdir()
        (tmp_path / "checkpoints" / name / "x").write_text("mine")
    train(tmp_path)
    assert final_bytes(tmp_path) == undisturbed[True]
    assert all((tmp_path / "checkpoints" / name / "x").exists() for name in strays)


@pytest.mark.parametrize("lost", [1, 2])
def test_corrupted_checkpoints_fall_back_and_say_so(tmp_path, undisturbed, lost):
    train(tmp_path, generations=8)
    train(tmp_path, generations=12)
    for sidecar in saved(tmp_path / "checkpoints")[-lost:]:
        sidecar.with_suffix(".safetensors").write_bytes(b"garbage")
    _, printed = train(tmp_path)
    assert printed.count("its checksum does not hold; falling back") == lost
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
    with pytest.raises(InputError, match=r"cannot write .*: No space left on device; make room"):
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
