"""A run in a process of its own, to be stopped and killed. Run by test_signals.py.

python -m tests.run.toy_process FOLDER GENERATIONS SECONDS_PER_BATCH
"""

import sys
import time
from pathlib import Path

from rich.console import Console

import springroll.run.metrics
import springroll.run.session
from springroll.run.config import RunConfig
from springroll.run.folder import RunFolder
from springroll.run.loop import run
from tests.run.toy import batch, toy


def main(path, generations, pause):
    springroll.run.session.draw_curve = lambda *_, **__: None
    springroll.run.metrics._board = lambda *_: None

    def slow_batch(generation):
        time.sleep(pause)
        return batch(generation)

    config = RunConfig(generations=generations)
    new = not (path / "config.json").exists()
    folder = RunFolder.create(path, config) if new else RunFolder.resume(path)
    console = Console(stderr=True)
    return run(config, toy(batch=slow_batch), folder, console=console).exit_code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
