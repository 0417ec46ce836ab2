"""`springroll eval RUN`: bits per byte of a run, its answers to held-out problems, its returns."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from springroll.atomic import write_json
from springroll.cli.jobs import open_path
from springroll.cli.options import parse
from springroll.run.answers import SHOWN, answer_lines
from springroll.run.job import EvalOptions

SPELT = 400  # characters of a prompt and of an answer


def run(argv: Sequence[str]) -> int:
    """Evaluate and print."""
    options = parse(EvalOptions, _numbered(argv), prog="springroll eval")
    job, opened = open_path(options.run, best=options.best)
    if options.answers and not job.answers:
        raise opened.refused("whose model answers nothing; leave out --answers")
    evaluation = job.evaluate(opened, options)
    for note in evaluation.notes:
        print(note, file=sys.stderr)
    answers = [*evaluation.answers]
    figures = {**evaluation.figures, "answers": answers} if options.answers else evaluation.figures
    if options.out is not None:
        write_json(Path(options.out), figures)
    if options.json:
        print(json.dumps(figures))
    else:
        from rich.console import Console

        Console().print(evaluation.table)
        print(*answer_lines(answers, SPELT), sep="\n", end="\n" if answers else "")
    return 0


def _numbered(argv: Sequence[str]) -> list[str]:
    """The arguments, with a number behind an `--answers` that has none."""
    numbered = []
    for token, following in zip(argv, [*argv, ""][1:], strict=True):
        bare = token == "--answers" and not following.lstrip("+-").isdecimal()
        numbered.append(f"{token}={SHOWN}" if bare else token)
    return numbered
