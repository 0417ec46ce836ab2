"""`springroll export RUN FOLDER`: the weights of a run as a Hugging Face folder."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from springroll.cli.options import parse
from springroll.cli.trained import open_folder
from springroll.errors import InputError
from springroll.train.train_config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write the newest weights of a run of `springroll train` as a model that transformers loads.

    A model that came from a Hugging Face folder takes its tokenizer and templates along.
    """

    run: Annotated[str, tyro.conf.Positional]
    """The folder of a run; it is only read."""
    folder: Annotated[str, tyro.conf.Positional]
    """Where to; it must not hold a model."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of the tensors; default: as trained."""


def run(argv: Sequence[str]) -> int:
    """Write the folder, shard by shard."""
    options = parse(ExportOptions, argv, prog="springroll export")
    folder, config = open_folder(options.run)
    if not isinstance(config, TrainConfig):
        raise InputError(
            f"{options.run} is a run of springroll {config.command}, whose model has no form that "
            "transformers knows"
        )

    from springroll.models.hf import is_hf_folder
    from springroll.models.hf_write import save_hf
    from springroll.train.backprop_task import model_config, weights_of
    from springroll.train.checkpoint import load_newest

    saved, prefix, params = weights_of(config)
    found, notes = load_newest(folder.checkpoints, saved, prefix=prefix)
    for note in notes:
        print(note, file=sys.stderr)
    if found is None:
        raise InputError(f"{options.run} has no checkpoint that can be read")
    like = config.model if is_hf_folder(config.model) else None
    dtype = options.dtype or config.dtype
    shape = model_config(config.model)
    save_hf(options.folder, shape, params(found.tree), dtype=dtype, like=like)
    print(
        f"wrote {shape.parameters:,} {dtype} parameters of generation {found.generation:,} to "
        f"{options.folder}"
    )
    return 0
