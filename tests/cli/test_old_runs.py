"""Run folders of an earlier version, with the names that options had then, are read and continued.

Integer runs end with the bytes that the earlier version would have written; for floats that holds
on one processor only, so there it is tests/digests.py that compares bytes.
"""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from springroll.cli.job import config_of
from springroll.cli.jobs import job_of
from springroll.cli.main import main
from springroll.errors import InputError
from springroll.rl.config import RLConfig, factor_of
from springroll.run.folder import RunFolder, open_run

FOLDER = Path(__file__).parents[1] / "golden" / "old_runs"
RENAMED = {
    "pretrain": {"decay": "lr_half_life", "tokens": "tokens_per_member"},
    "train": {"gap": "refresh_interval", "tokens": "sequence", "memory": "device_memory"},
    "finetune": {
        "members": "pop_size",
        "lr_decay": "lr_half_life",
        "sigma_decay": "sigma_half_life",
        "memory": "cache_memory",
    },
    "rl": {"lr_decay": "lr_half_life", "sigma_decay": "sigma_half_life"},
}
INTEGER_CHECKPOINT = "8570d94f6cc15cd67085cd95773103f445a5efd6a0ad47660cdec19f4cf87d93"


@pytest.fixture(params=RENAMED)
def job(request, tmp_path, monkeypatch):
    """The name of a job whose old run lies in the working directory."""
    shutil.copytree(FOLDER / request.param, tmp_path / request.param)
    shutil.copytree(FOLDER / "model", tmp_path / "model")
    shutil.copy(FOLDER / "text.txt", tmp_path / "text.py")
    monkeypatch.chdir(tmp_path)
    return request.param


def config(job):
    return json.loads((Path(job) / "config.json").read_text())


@pytest.mark.parametrize(
    "job",
    [pytest.param(x, marks=pytest.mark.slow) if x != "pretrain" else x for x in RENAMED],
    indirect=True,
)
def test_an_old_run_is_evaluated_or_exported_continued_and_replayed(job, capsys):
    before, journal = config(job), (Path(job) / "journal").read_bytes()

    if job == "train":  # its model reads tokens, and eval models of bytes
        assert main(["export", job, "exported"]) == 0
        said = capsys.readouterr()
        assert "of generation 4 to exported" in said.out
    else:
        assert main(["eval", job, "--json"]) == 0
        said = capsys.readouterr()
        assert json.loads(said.out)["generation"] == 4
    for old, new in RENAMED[job].items():
        assert f"note: {job}/config.json is of an earlier version: {old} " in said.err
        assert f"is now called {new}" in said.err
    assert config(job) == before  # which only reads

    assert main([job, "--resume", "--out", job, "--generations", "6"]) == 0
    assert "going on with" in capsys.readouterr().err
    after = config(job)
    assert after["run_id"] == before["run_id"]
    assert not RENAMED[job].keys() & after["config"].keys()
    assert RENAMED[job].keys() <= before["config"].keys()
    longer = (Path(job) / "journal").read_bytes()
    assert longer.startswith(journal) and len(longer) > len(journal)
    newest = (Path(job) / "checkpoints" / "000000006.safetensors").read_bytes()
    if job == "pretrain":
        assert hashlib.sha256(newest).hexdigest() == INTEGER_CHECKPOINT

    replayed = main(["replay", job])
    said = capsys.readouterr()
    if job == "train":
        assert replayed == 2 and "was trained by gradients" in said.err
    else:
        assert f"rebuilt {job} up to generation 6 from its journal" in said.out
        assert "the checkpoint of generation 6" in said.out
        assert replayed == 0 or job != "pretrain"  # floats depend on the processor
    assert "earlier version" not in said.err  # resuming wrote today's names


def test_old_options_go_on_with_an_old_run_and_others_do_not(job, capsys):
    kind = job_of(job).config
    old = {
        "pretrain": ["--decay", "500", "--tokens=4"],
        "train": ["--gap", "2", "--memory", "3GiB", "--tokens=16"],
        "finetune": ["--members", "4", "--lr-decay", "20", "--sigma_decay=30"],
        "rl": ["--members", "8", "--lr-decay", "0.99", "--sigma-decay=0.9995"],
    }[job]
    go_on = ["--resume", "--out", job]
    given = config_of(job_of(job), [*go_on, *old])
    assert capsys.readouterr().err.count("note: --") == sum(word[0] == "-" for word in old)
    folder, config = open_run(given, kind())
    folder.write_config(config)
    assert config == replace(folder.options(kind), resume=True)
    with pytest.raises(InputError, match=r"lr is 0\.25, but the run to resume has"):
        open_run(config_of(job_of(job), [*go_on, "--lr", "0.25"]), kind())


def test_options_of_an_old_run_that_were_changed_are_refused(job, capsys):
    """Under the names that options had then, and after a later version has written today's."""
    for _ in range(2):
        whole = (Path(job) / "config.json").read_text()
        (Path(job) / "config.json").write_text(whole.replace('"seed": 0', '"seed": 1'))
        with pytest.raises(InputError, match=r"config\.json was changed after the run began"):
            RunFolder.resume(job).options(job_of(job).config)
        (Path(job) / "config.json").write_text(whole)
        folder = RunFolder.resume(job)
        folder.write_config(folder.options(job_of(job).config))


def test_an_old_factor_is_kept_to_the_last_bit_of_float32():
    stored = RunFolder.resume(FOLDER / "rl").options(RLConfig)
    assert stored.lr_half_life is not None and stored.sigma_half_life is not None
    assert np.float32(factor_of(stored.lr_half_life)) == np.float32(0.99)
    assert np.float32(factor_of(stored.sigma_half_life)) == np.float32(0.9995)
