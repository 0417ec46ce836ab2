"""Kills a run at every file operation, one after another, and resumes it; then the same with a disk
that gets full there. Run by test_crash.py.

    python -m tests.run.toy_crash FOLDER APART

At every operation with APART 1; with 6 at every sixth one, and the disk is full at others than
those at which it is killed.

Every run is a fork of this process; the next fork goes on in the same folder, undisturbed. The task
is NumPy alone, as forks and JAX's threads do not mix. Prints one JSON object.
"""

import io
import json
import random
import signal
import sys
import traceback
from pathlib import Path

import numpy as np
from rich.console import Console

import springroll.run.best
import springroll.run.session
from springroll.atomic import replacing
from springroll.errors import InputError
from springroll.run.config import RunConfig
from springroll.run.folder import RunFolder
from springroll.run.loop import run
from springroll.run.task import Task
from tests.run.file_faults import forked

GENERATIONS = 3
REFUSED = 2


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
    keep_best=True,
)


def train(folder):
    """Begin or go on; 2 where an InputError ended it."""
    config = RunConfig(generations=GENERATIONS, log_every=0.0)
    try:
        if (folder / "config.json").exists():
            place = RunFolder.resume(folder)
        else:
            place = RunFolder.create(folder, config)
        run(config, TASK, place, console=Console(file=io.StringIO()))
    except InputError as error:
        assert "No space left on device" in str(error), error
        return REFUSED
    except BaseException:
        traceback.print_exc()
        raise
    return 0


def sitting(folder, point=None, **faults):
    """Train in a process of its own; its exit code."""
    code = forked(lambda: train(folder), folder, point, **faults)
    expected = (0, REFUSED) if faults else (0, -signal.SIGKILL) if point else (0,)
    if code not in expected:
        raise SystemExit(f"{folder} at {point}: exit code {code}, see above")
    return code


def final_files(folder):
    """All that follows from what was trained."""
    found = [folder / "journal", folder / f"checkpoints/{GENERATIONS:09d}.safetensors"]
    found += sorted((folder / "best").iterdir())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def at_every_point(base, wanted, first, apart, **faults):
    """(the last point there is, those after which a resumed run ended otherwise)."""
    different, point = [], first
    while sitting(base / f"at-{point}", point, **faults):
        sitting(base / f"at-{point}")
        if final_files(base / f"at-{point}") != wanted:
            different.append(point)
        point += apart
    return point - apart, different


def often(base, wanted, **faults):
    """(how many sittings were cut short, whether the run came to its end with the same bytes)."""
    count, rng = 0, random.Random(0)
    while sitting(base, rng.randint(1, 60), **faults):
        count += 1
    return count, final_files(base) == wanted


def main(base, apart):
    springroll.run.session.SAVE_SHARE = float("inf")  # a checkpoint after every generation
    springroll.run.session.peak_memory_bytes = lambda: 0
    springroll.run.session.draw_curve = drawn
    springroll.run.best.EVERY = 1
    import tensorboardX.event_file_writer  # noqa: F401  (once, and not in every fork)

    sitting(base / "undisturbed")
    wanted = final_files(base / "undisturbed")
    found = {
        "killed": [*at_every_point(base / "killed", wanted, 1, apart), *often(base / "k", wanted)],
        "full": [
            *at_every_point(base / "full", wanted, apart, apart, full=True),
            *often(base / "f", wanted, full=True),
        ],
    }
    print(json.dumps(found))


def drawn(path, *_, **__):
    """Drawing takes a tenth of a second; what matters here is that it writes."""
    with replacing(path) as file:
        file.write(b"picture")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
