"""`springroll eval RUN`: bits per byte of a run, its answers to held-out problems, its returns."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from springroll.atomic import write_json
from springroll.cli.jobs import open_path
from springroll.cli.options import parse
from springroll.run.job import EvalOptions


def run(argv: Sequence[str]) -> int:
    """Evaluate and print."""
    options = parse(EvalOptions, argv, prog="springroll eval")
    job, opened = open_path(options.run, best=options.best)
    evaluation = job.evaluate(opened, options)
    for note in evaluation.notes:
        print(note, file=sys.stderr)
    if options.out is not None:
        write_json(Path(options.out), evaluation.figures)
    if options.json:
        print(json.dumps(evaluation.figures))
    else:
        from rich.console import Console

        Console().print(evaluation.table)
    return 0
