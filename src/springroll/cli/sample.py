"""`springroll sample RUN`: let a run, or a model in a Hugging Face folder, write text."""

import sys
from collections.abc import Sequence
from pathlib import Path

from springroll.atomic import replacing
from springroll.cli.jobs import open_path
from springroll.cli.options import parse
from springroll.memory import check_fits
from springroll.run.job import Sample, SampleOptions

EACH = 16  # bytes that a byte or token of a text takes while it is written


def run(argv: Sequence[str]) -> int:
    """Generate and print."""
    options = parse(SampleOptions, argv, prog="springroll sample")
    check_fits(EACH * options.length, f"a text of length {options.length:,}")
    text, notes = written(options)
    for note in notes:
        print(note, file=sys.stderr)
    text = text.encode() if isinstance(text, str) else text
    if options.out is not None:
        with replacing(Path(options.out)) as file:
            file.write(text)
    print(printable(text))
    return 0


def written(options: SampleOptions) -> Sample:
    """The prompt and what follows."""
    from springroll.generate import token_model

    if token_model.names_model(options.run):
        model = token_model.read_token_model(options.run)
        return Sample(token_model.written(model, options), [])
    job, opened = open_path(options.run)
    return job.sample(opened, options)


def printable(text: bytes) -> str:
    """Text that is safe on a terminal: escapes and other control characters become a mark.

    The byte between documents is shown as an empty line.
    """
    decoded = text.decode(errors="replace").replace("\0", "\n\n")
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in decoded)
