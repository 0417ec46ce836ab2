"""The jobs there are, and the runs they left. A further job is a room and a line in `JOBS`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from springroll.errors import InputError, suggestion

if TYPE_CHECKING:
    from springroll.run.config import RunConfig
    from springroll.run.job import Job, OpenRun

JOBS: dict[str, str] = {  # rooms that export `JOB`, and what they do in a few words
    "pretrain": "train a byte language model without gradients",
    "train": "train a decoder on text by full or low-rank gradients",
    "finetune": "fine-tune a language model on a reward, without gradients",
    "rl": "learn to act from returns, in any environment",
}


def job_of(name: str) -> Job[RunConfig]:
    """The record of a job."""
    return importlib.import_module(f"springroll.{name}").JOB


def open_path(path: str, best: bool = False) -> tuple[Job[RunConfig], OpenRun[RunConfig]]:
    """The job of a finished or interrupted run, and the run.

    Raises:
        InputError: there is no run in the folder, one of a job that this version does not know, or
            one that keeps no best weights, where `best` asks for them.
    """
    from springroll.run.folder import RunFolder
    from springroll.run.job import OpenRun

    if not (Path(path) / "config.json").is_file():
        there = "holds no run (no config.json)" if Path(path).is_dir() else "does not exist"
        raise InputError(f"{path} {there}; give the folder of a run, such as runs/demo")
    folder = RunFolder.resume(path)
    # Runs from before there was a second job name none.
    name = folder.read_config().get("command", "pretrain")
    if name not in JOBS:
        hint = suggestion(name, JOBS, otherwise=f"this version knows {', '.join(JOBS)}")
        raise InputError(f"{folder.config} is of a run of springroll {name}{hint}")
    job = job_of(name)
    if best and not job.keeps_best:
        raise InputError(f"{path} keeps no best weights; leave out --best")
    return job, OpenRun(path, folder, folder.options(job.config))
