"""Replay: the journal alone rebuilds the weights, and tells when they are not the run's."""

import io
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from springroll.errors import InputError
from springroll.run import session
from springroll.run.checkpoint import differing_paths, load, save, saved
from springroll.run.config import RunConfig
from springroll.run.folder import RunFolder
from springroll.run.journal import Journal
from springroll.run.loop import run
from springroll.run.rebuild import replay
from springroll.run.task import Training
from tests.run.toy import toy


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A run of 20 generations, and its result."""
    monkeypatch.setattr(session, "draw_curve", lambda *_, **__: None)
    monkeypatch.setattr("springroll.run.metrics._board", lambda *_: None)
    config = RunConfig(generations=20)
    folder = RunFolder.create(tmp_path / "run", config)
    return folder, run(config, toy(), folder, console=Console(file=io.StringIO()))


def never(*_):
    raise AssertionError("a replay evaluates nothing")


def test_the_journal_alone_rebuilds_the_state_bit_for_bit(finished):
    folder, result = finished
    found = replay(toy(evaluate=never, batch=never), folder)
    assert found.equal
    assert (found.generation, found.compared, found.differing, found.notes) == (20, 20, [], [])
    assert differing_paths(found.state, result.state) == []


def test_a_replay_can_stop_earlier(finished):
    folder, _ = finished
    saved(folder.checkpoints)[0].unlink()
    found = replay(toy(), folder, generations=7)
    assert found.generation == 7 and int(found.state["generation"]) == 7
    # No checkpoint is that old; nothing to compare with is not the same as equal.
    assert found.compared is None and not found.equal
    with pytest.raises(InputError, match="generations is 21; the journal holds 20"):
        replay(toy(), folder, generations=21)


def test_changed_weights_are_named(finished):
    folder, result = finished
    sidecar = saved(folder.checkpoints)[-1]
    training = load(sidecar, Training(result.state, result.carry)).tree
    weights = training.state["weights"].at[2].set(jnp.float32(0.5))
    changed = training._replace(state={**training.state, "weights": weights})
    save(folder.checkpoints, 20, changed, {})
    found = replay(toy(), folder)
    assert found.differing == ["weights"] and not found.equal


def test_another_seed_does_not_rebuild_the_run(finished):
    folder, _ = finished
    with pytest.raises(InputError, match="of seed 0, 8 x float32, and this run of seed 1"):
        replay(toy(seed=1), folder)


def test_a_torn_end_is_dropped_and_said_so(finished):
    folder, _ = finished
    content = folder.journal.read_bytes()
    folder.journal.write_bytes(content[:-1])
    found = replay(toy(), folder)
    assert found.generation == 19
    assert "torn" in found.notes[0] and "later than generation 19" in found.notes[1]
    assert folder.journal.read_bytes() == content[:-1]  # a replay changes nothing


def test_the_journal_of_another_run_is_refused(finished):
    folder, _ = finished
    with pytest.raises(InputError, match=r"is of run .*, not of other"):
        replay(toy(), replace(folder, run_id="other"))


def test_a_replay_equals_the_slow_loop_in_numpy(finished):
    """Reference: the toy's rule in float64, generation by generation."""
    folder, result = finished
    weights = np.ones(5)
    with Journal.read_only(folder.journal) as journal:
        for record in journal:
            key = jax.random.fold_in(jax.random.key(0), record.generation)
            half = np.asarray(jax.random.normal(key, (4, 5)), np.float64)
            fitness = record.fitness.astype(np.float64)
            step = (fitness - fitness.mean()) @ np.concatenate([half, -half]) / 8
            weights += 0.05 * step
    np.testing.assert_allclose(result.state["weights"], weights, rtol=1e-4, atol=1e-5)
