"""A run in a process of its own, to be stopped and killed. Run by test_signals.py.

python toy_process.py FOLDER GENERATIONS SECONDS_PER_BATCH
"""

import sys
import time
from pathlib import Path

from toy import batch, toy

import springroll.train.metrics
import springroll.train.session
from springroll.train.config import RunConfig
from springroll.train.loop import run
from springroll.train.run_folder import RunFolder


def main(path, generations, pause):
    springroll.train.session.draw_curve = lambda *_, **__: None
    springroll.train.metrics._board = lambda *_: None

    def slow_batch(generation):
        time.sleep(pause)
        return batch(generation)

    config = RunConfig(generations=generations)
    new = not (path / "config.json").exists()
    folder = RunFolder.create(path, config) if new else RunFolder.resume(path)
    return run(config, toy(batch=slow_batch), folder).exit_code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
