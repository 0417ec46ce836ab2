"""The best weights are those of fixed generations, whatever the clock and the pieces of a run."""

import io
import itertools
import json

import numpy as np
import pytest
from rich.console import Console

from springroll.errors import InputError
from springroll.run import best, session
from springroll.run.best import Best, fixed, spacing
from springroll.run.config import RunConfig
from springroll.run.folder import RunFolder
from springroll.run.loop import run
from springroll.run.sidecar import read_sidecar, saved, write_sidecar
from tests.run.toy import toy


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    monkeypatch.setattr(session, "draw_curve", lambda *_, **__: None)
    monkeypatch.setattr("springroll.run.metrics._board", lambda *_: None)


def figure(generation):
    """Up and down, with a new best now and then."""
    return float(np.sin(generation) + generation / 20)


def train(path, generations, until=None, **changes):
    """Start or go on; with `until`, as if killed while the data of that generation are fetched."""

    def batch(generation):
        if generation == until:
            raise KeyboardInterrupt
        return np.zeros((1, 5), np.float32)

    def validate(state, carry):
        return {"valid_bits_per_byte": figure(int(state["generation"]))}

    options = {"batch": batch, "validate": validate, "keep_best": True, "carry": False}
    config = RunConfig(generations=generations, log_every=0.0, **changes)
    new = not (path / "config.json").exists()
    folder = RunFolder.create(path, config) if new else RunFolder.resume(path)
    run(config, toy(**options), folder, console=Console(file=io.StringIO()))


def kept(path):
    return {file.name: file.read_bytes() for file in (path / "best").iterdir()}


def test_what_is_kept_is_the_best_of_fixed_generations_and_the_last(tmp_path):
    train(tmp_path, 46)
    candidates = [g for g in range(47) if fixed(g, 10)]
    assert candidates == [0, 10, 20, 30, 40]
    top = max(candidates, key=figure)
    assert figure(46) > figure(top)
    found = {int(path.stem): read_sidecar(path)["meta"] for path in saved(tmp_path / "best")}
    assert found[top]["figure"] == figure(top) and "passing" not in found[top]
    assert found[46]["figure"] == figure(46) and found[46]["passing"]
    assert len(found) == 2


@pytest.mark.parametrize("every", [0.0, 10.0])
@pytest.mark.parametrize("pieces", [[46], [3, 8, 45], [10, 20, 31], [44]])
def test_in_pieces_and_whatever_the_clock_the_same_is_kept(tmp_path, pieces, every, monkeypatch):
    train(tmp_path / "whole", 46)
    monkeypatch.setattr(session, "SAVE_SHARE", 0.0)
    for piece in pieces:
        train(tmp_path / "pieces", piece, eval_every=every)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "pieces", 50, until=piece + 5 if piece < 41 else 46)
    if pieces[-1] < 46:
        train(tmp_path / "pieces", 46)
    assert kept(tmp_path / "pieces") == kept(tmp_path / "whole")


def test_candidates_get_rarer_and_cost_a_tenth_at_most():
    found = [g for g in range(100_000) if fixed(g, 10)]
    assert len(found) < 200
    assert max(b / a for a, b in itertools.pairwise(found[20:])) < 1.1
    assert spacing(toy()) == 10
    assert spacing(toy(validation_tokens=5000)) == 500  # 50 generations long
    assert best.SHARE == 0.1


def test_the_best_of_an_earlier_version_stays_until_a_better_one(tmp_path):
    train(tmp_path, 12)
    for path in saved(tmp_path / "best"):
        about = read_sidecar(path)
        about["meta"] = {"figure": 1e9}
        about["format"] = "springroll-checkpoint-1"
        path.write_text(json.dumps(about))
    before = kept(tmp_path)
    train(tmp_path, 46)
    assert kept(tmp_path).items() <= before.items() and kept(tmp_path)


def test_a_figure_that_is_none_counts_for_nothing(tmp_path):
    train(tmp_path, 12)
    for path in saved(tmp_path / "best"):
        about = read_sidecar(path)
        meta = about["meta"] | {"figure": "much"}
        write_sidecar(path, digest=about["sha256"], size=about["bytes"], meta=meta)
    assert Best(tmp_path / "best", toy(keep_best=True))._figure == float("-inf")


def test_a_best_that_was_edited_touches_nothing(tmp_path):
    train(tmp_path, 12)
    path = saved(tmp_path / "best")[0]
    path.write_text(path.read_text().replace('"figure": ', '"figure": 1'))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match="its checksum does not hold"):
        train(tmp_path, 20)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
