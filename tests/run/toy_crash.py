"""Kills a run at every file operation, one after another, and resumes it. Run by test_crash.py.

    python toy_crash.py FOLDER

Every run is a fork of this process that sends itself SIGKILL just before its n-th file operation,
or in the middle of it when it is a write; the next fork goes on in the same folder, undisturbed.
The task is NumPy alone, as forks and JAX's threads do not mix. Prints one JSON object.
"""

import io
import json
import os
import random
import signal
import sys
from pathlib import Path

import numpy as np
from rich.console import Console

import springroll.run.metrics
import springroll.run.session
from springroll.run.config import RunConfig
from springroll.run.folder import RunFolder
from springroll.run.loop import run
from springroll.run.task import Task

GENERATIONS = 4
OPERATIONS = ("write", "fsync", "replace", "ftruncate", "unlink")


def evaluate(state, members, carry, batch):
    carry = 0.5 * carry + state["w"] + members
    return (
        -((carry - batch) ** 2).sum(axis=1).astype(np.float32),
        carry,
        {"train_bits_per_byte": 1.0},
    )


def tell(state, members, fitness):
    return {"w": state["w"] + 0.1 * fitness @ members, "n": state["n"] + 1}, {}


TASK = Task(
    init=lambda: ({"w": np.ones(3), "n": np.int64(0)}, np.zeros((4, 3))),
    batch=lambda generation: np.full((1, 3), 0.1 * generation),
    ask=lambda state: np.random.default_rng(int(state["n"])).normal(size=(4, 3)),
    evaluate=evaluate,
    tell=tell,
    validate=lambda state, carry: {"valid_bits_per_byte": float(np.abs(state["w"]).sum())},
    pop_size=4,
    tokens=4,
)


def train(folder):
    config = RunConfig(generations=GENERATIONS, log_every=0.0)
    if (folder / "config.json").exists():
        place = RunFolder.resume(folder)
    else:
        place = RunFolder.create(folder, config)
    run(config, TASK, place, console=Console(file=io.StringIO()))


def die_at(point):
    """Have the n-th file operation from here on be the last thing this process does."""
    count = 0

    def hooked(real, name):
        def call(*arguments, **named):
            nonlocal count
            count += 1
            if count == point:
                if name == "write":
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        return call

    for name in OPERATIONS:
        setattr(os, name, hooked(getattr(os, name), name))


def fork(folder, point=None):
    """Train in a process of its own; whether it came to its end."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        if status not in (0, signal.SIGKILL):
            raise SystemExit(f"point {point}: a resumed run failed, see above")
        return status == 0
    code = 1
    try:
        if point:
            die_at(point)
        train(folder)
        code = 0
    finally:
        os._exit(code)


def final_bytes(folder):
    names = ("journal", f"checkpoints/{GENERATIONS:09d}.safetensors")
    return [(folder / name).read_bytes() for name in names]


def main(base):
    springroll.run.session.SAVE_SHARE = float("inf")  # a checkpoint after every generation
    springroll.run.session.peak_memory_bytes = lambda: 0
    springroll.run.session.draw_curve = lambda *_, **__: None
    springroll.run.metrics._board = lambda *_: None
    assert fork(base / "undisturbed")
    wanted = final_bytes(base / "undisturbed")

    different, point = [], 1
    while not fork(base / f"at-{point}", point):
        assert fork(base / f"at-{point}")
        if final_bytes(base / f"at-{point}") != wanted:
            different.append(point)
        point += 1

    kills, rng = 0, random.Random(0)
    while not fork(base / "often", rng.randint(1, 40)):
        kills += 1
    often = final_bytes(base / "often") == wanted
    print(json.dumps({"points": point - 1, "different": different, "kills": kills, "often": often}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
