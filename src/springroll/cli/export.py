"""`springroll export RUN FOLDER`: the weights of a run as a Hugging Face folder."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from springroll.cli.jobs import open_path
from springroll.cli.options import parse


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write the weights of a run of `springroll train` or `finetune` as a model that transformers
    loads.

    A model that came from a Hugging Face folder takes its tokenizer and templates along; one of
    bytes gets a tokenizer of bytes.
    """

    run: Annotated[str, tyro.conf.Positional]
    """The folder of a run; it is only read."""
    folder: Annotated[str, tyro.conf.Positional]
    """Where to; it must not hold a model."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of the tensors; default: as trained."""
    best: bool = False
    """Of a run of `finetune`: the weights that did best on the held-out problems, instead of the
    newest."""


def run(argv: Sequence[str]) -> int:
    """Write the folder, shard by shard."""
    options = parse(ExportOptions, argv, prog="springroll export")
    job, opened = open_path(options.run, best=options.best)
    if not job.exports:
        raise opened.refused("whose model has no form that transformers knows")
    saved = job.weights(opened)

    from springroll.models.hf.save import save_hf
    from springroll.run.weights import load_weights
    from springroll.tokens.byte_tokenizer import write_byte_tokenizer

    weights = load_weights(opened, saved, best=options.best)
    for note in weights.notes:
        print(note, file=sys.stderr)
    dtype = options.dtype or saved.dtype
    save_hf(options.folder, saved.model, weights.params, dtype=dtype, like=saved.like)
    if saved.like is None:
        write_byte_tokenizer(options.folder)
    print(
        f"wrote {saved.model.parameters:,} {dtype} parameters of generation "
        f"{weights.generation:,} to {options.folder}"
    )
    return 0
