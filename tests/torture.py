"""Kills runs of a job at random moments, or lets their disk get full at random bytes, and resumes
them until each has ended; all end with the bytes of one that nothing happened to.

    python -m tests.torture JOB killed|full COUNT FOLDER

JOB is pretrain, train, finetune or rl; COUNT is how often a sitting is cut short. Every sitting is
the command itself in a fork of this process, which has imported everything and started no JAX. A
disk is full for the files of the run alone, from a random byte on. Prints one JSON object.
"""

import importlib
import json
import math
import os
import pkgutil
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

import springroll
from springroll.cli.main import main as command
from tests.digests import inputs
from tests.run.file_faults import forked

OFTEN = "--log-every 0 --eval-every 0"
JOBS = {
    "pretrain": "--data {text} --n-layers 1 --hidden 16 --pop-size 16 --tokens-per-member 8 "
    "--valid-streams 4 --valid-tokens 32 --generations 150",
    "train": "--data {text} --model llama-tiny --batch 2 --sequence 16 --valid-streams 4 "
    "--valid-tokens 16 --optimizer lowgrad --rank 4 --steps 80",
    "finetune": "--model {model} --task {reward}:near_d --data {prompts} --pop-size 4 --prompts 2 "
    "--max-tokens 4 --eval-problems 2 --generations 40",
    "rl": "--env CartPole-v1 --pop-size 8 --width 8 --layers 1 --max-steps 20 --eval-episodes 4 "
    "--no-gif --generations 500",
}
REFUSED = 2  # exit code of a full disk
HEADER = 100  # bytes of a journal without a record, at most


def sitting_here(job, options, out, log):
    """Start, or go on with, a run in this process; its exit code."""
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    go_on = ["--resume"] if (out / "config.json").exists() else []
    return command([job, *options, "--out", str(out), *go_on])


def sitting(job, options, out, log, **faults):
    """The same in a child."""
    return forked(lambda: sitting_here(job, options, out, log), out, **faults)


class Watched(NamedTuple):
    """A sitting that was watched, and perhaps killed."""

    code: int  # its exit code, or minus the signal
    began: float  # seconds until its first record
    ended: float  # seconds in all


def watched(job, options, out, log, *, after=math.inf, within=math.inf):
    """The same, killed after so many seconds, or so many after its first record."""
    child = os.fork()
    if not child:
        code = 1
        try:
            code = sitting_here(job, options, out, log)
        finally:
            os._exit(code)
    journal = out / "journal"
    size = lambda: journal.stat().st_size if journal.exists() else 0
    before, start, began = size(), time.monotonic(), math.inf
    while True:
        now = time.monotonic() - start
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return Watched(os.waitstatus_to_exitcode(status), began, now)
        if began == math.inf and size() > max(before, HEADER):
            began = now
        if now >= min(after, began + within):
            os.kill(child, signal.SIGKILL)
        time.sleep(0.0005)


def final_files(out):
    """All that follows from what was trained."""
    newest = max((out / "checkpoints").glob("*.safetensors"))
    best = sorted((out / "best").iterdir()) if (out / "best").exists() else []
    return {str(p.relative_to(out)): p.read_bytes() for p in (out / "journal", newest, *best)}


def size(out):
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def torture(job, how, count, folder, options):
    """How often sittings were cut short, how many runs there were, and which ended otherwise."""
    rng, log = random.Random(f"{job} {how}"), folder / "log"
    usual = watched(job, options, folder / "undisturbed", log)
    if usual.code:
        raise SystemExit(log.read_text())
    wanted = final_files(folder / "undisturbed")
    room = size(folder / "undisturbed")
    cut, runs, different = 0, 0, []
    while cut < count:
        out = folder / f"run-{runs}"
        while True:
            if how == "killed" and rng.random() < 0.2:
                code = watched(job, options, out, log, after=rng.uniform(0, usual.ended)).code
            elif how == "killed":  # starting takes longest, and does least
                within = rng.uniform(0, usual.ended - usual.began)
                code = watched(job, options, out, log, within=within).code
            else:
                code = sitting(job, options, out, log, full=True, room=int(rng.uniform(0, room)))
            if code == 0:
                break
            if code != (-signal.SIGKILL if how == "killed" else REFUSED):
                raise SystemExit(f"{out}: exit code {code}\n{log.read_text()[-4000:]}")
            cut += 1
        if final_files(out) != wanted:
            different.append(out.name)
        else:
            shutil.rmtree(out)
        runs += 1
    said = log.read_text(errors="replace")
    return {
        "cut_short": cut,
        "runs": runs,
        "different": different,
        "tracebacks": said.count("Traceback"),
        "faults": said.count("a fault of springroll"),
    }


def import_everything():
    """Else every child would."""
    for info in pkgutil.walk_packages(springroll.__path__, "springroll."):
        if "__main__" not in info.name:
            try:
                importlib.import_module(info.name)
            except ImportError:  # of an extra that is not installed
                continue


def main(job, how, count, folder):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = inputs(folder, needs_model=job == "finetune")
    import_everything()
    options = f"{JOBS[job]} {OFTEN}".format(**paths).split()
    print(json.dumps(torture(job, how, int(count), folder, options)))


if __name__ == "__main__":
    main(*sys.argv[1:])
