"""The run folder and the files that are whole or absent."""

import json
import os
from dataclasses import dataclass

import pytest

from springroll.atomic import read_json, replacing, write_json
from springroll.errors import InputError
from springroll.run.config import RunConfig, from_json, run_id
from springroll.run.folder import RunFolder, open_run


@dataclass(frozen=True, kw_only=True)
class Example(RunConfig):
    width: int = 4


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_run_is_found_again(tmp_path):
    config = Example(width=8, generations=3)
    made = RunFolder.create(tmp_path / "a" / "b", config)
    found = RunFolder.resume(tmp_path / "a" / "b")
    assert found == made
    assert found.run_id == run_id(config)
    assert from_json(Example, found.read_config()["config"]) == config
    assert made.checkpoints.is_dir()


def test_a_new_budget_is_written_and_the_run_keeps_its_name(tmp_path):
    folder = RunFolder.create(tmp_path, Example(generations=3))
    folder.write_config(Example(generations=9))
    again = RunFolder.resume(tmp_path)
    assert again.run_id == folder.run_id
    assert again.read_config()["config"]["generations"] == 9


def test_a_run_is_opened_anew_or_to_go_on(tmp_path):
    out, defaults = str(tmp_path / "run"), Example()
    started = Example(out=out, width=8, generations=3)
    folder, config = open_run(started, defaults)
    assert config == started
    again, config = open_run(Example(out=out, resume=True, generations=9), defaults)
    assert again == folder
    assert config == Example(out=out, resume=True, width=8, generations=9)
    assert again.read_config()["config"]["generations"] == 3  # until the lock is held
    again.write_config(config)
    assert again.read_config()["config"]["generations"] == 9
    with pytest.raises(InputError, match="already holds a run"):
        open_run(started, defaults)
    with pytest.raises(InputError, match="width is 5, but the run to resume has 8"):
        open_run(Example(out=out, resume=True, width=5), defaults)


def test_a_run_that_was_moved_is_found_where_it_is(tmp_path):
    open_run(Example(out=str(tmp_path / "a")), Example())
    (tmp_path / "a").rename(tmp_path / "b")
    folder, config = open_run(Example(out=str(tmp_path / "b"), resume=True), Example())
    assert config.out == str(folder.path) == str(tmp_path / "b")


def test_a_run_stays_where_it_began_when_code_of_a_user_changes_folder(tmp_path, monkeypatch):
    """As a reward function may that tries programs; the rest of the run was written elsewhere."""
    monkeypatch.chdir(tmp_path)
    folder, config = open_run(Example(out="run"), Example())
    assert str(folder.path) == config.out == "run"
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert folder.read_config()["run_id"] == folder.run_id
    places = (folder.metrics, folder.journal, folder.checkpoints, folder.best, folder.summary)
    assert {path.parent for path in places} == {tmp_path / "run"}


def test_a_config_of_another_version_says_where(tmp_path):
    folder = RunFolder.create(tmp_path, Example())
    write_json(folder.config, {"run_id": "x", "config": {"depth": 3}})
    with pytest.raises(InputError, match=r"config\.json: unknown key 'depth'"):
        open_run(Example(out=str(tmp_path), resume=True), Example())


def test_a_folder_that_holds_a_run_is_left_alone(tmp_path):
    RunFolder.create(tmp_path, Example())
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match="already holds a run; continue it with --resume") as error:
        RunFolder.create(tmp_path, Example(width=5))
    assert "\n" not in str(error.value)
    assert snapshot(tmp_path) == before


def test_of_two_that_make_a_run_at_once_one_is_refused(tmp_path, monkeypatch):
    """Both have looked before either wrote."""
    monkeypatch.setattr(RunFolder, "refuse_occupied", lambda path: None)
    RunFolder.create(tmp_path, Example())
    before = snapshot(tmp_path)
    for links in (True, False):  # not all file systems have them
        if not links:
            monkeypatch.setattr("os.link", lambda *_: os.stat("/gone"))
        with pytest.raises(InputError, match="already holds a run"):
            RunFolder.create(tmp_path, Example(width=5))
        assert snapshot(tmp_path) == before
    (tmp_path / "config.json").unlink()
    RunFolder.create(tmp_path, Example(width=5))
    assert from_json(Example, RunFolder.resume(tmp_path).read_config()["config"]).width == 5


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="is not empty and holds no run"):
        RunFolder.create(tmp_path, Example())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_empty_folder_and_a_half_made_one_can_be_used(tmp_path):
    (tmp_path / "config.json.tmp").write_text('{"run_')  # killed while creating
    (tmp_path / "config.json.123.tmp").write_text('{"run_')
    assert RunFolder.create(tmp_path, Example()).config.is_file()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist; start a run by leaving out --resume"),
        (lambda path: path.mkdir(), "holds no run"),
        (lambda path: [path.mkdir(), (path / "config.json").write_text("{")], "is not JSON"),
        (lambda path: [path.mkdir(), (path / "config.json").write_text("[]")], "not a JSON object"),
        (lambda path: [path.mkdir(), (path / "config.json").write_text("{}")], "not the config"),
    ],
)
def test_nothing_to_resume_is_one_clear_line(tmp_path, make, message):
    make(tmp_path / "run")
    with pytest.raises(InputError, match=message) as error:
        RunFolder.resume(tmp_path / "run")
    assert "\n" not in str(error.value)


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match="run is a file; give another --out"):
        RunFolder.create(tmp_path / "run", Example())
    with pytest.raises(InputError, match="cannot write the run folder"):
        RunFolder.create(tmp_path / "run" / "below", Example())


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]
    write_json(path, {"a": 2})
    assert read_json(path) == {"a": 2}


def test_reading_a_missing_file_says_so(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*none\.json: No such file"):
        read_json(tmp_path / "none.json")


def test_a_device_or_a_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.symlink("/dev/null", tmp_path / "link")
    for name in ("pipe", "link"):
        refused = pytest.raises(OSError, match="it is no file, but a pipe or a device")
        with refused, replacing(tmp_path / name) as file:
            file.write(b"x")
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_char_device()
