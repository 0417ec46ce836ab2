"""`springroll export RUN FOLDER`: the weights of a run as a Hugging Face folder."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from springroll.cli.options import parse
from springroll.cli.trained import AnyConfig, open_folder
from springroll.errors import InputError
from springroll.train.finetune_config import FinetuneConfig
from springroll.train.train_config import TrainConfig


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


class Weights(NamedTuple):
    """Where the weights of a run are, and what they are of."""

    shape: Any  # the model's configuration
    saved: Any  # shapes of the part of a checkpoint that holds them
    prefix: str  # where that part is
    params: Callable[[Any], Any]  # what was saved -> the weights
    like: str | None  # the Hugging Face folder they came from
    dtype: Literal["float32", "bfloat16"]


def run(argv: Sequence[str]) -> int:
    """Write the folder, shard by shard."""
    options = parse(ExportOptions, argv, prog="springroll export")
    folder, config = open_folder(options.run)
    if options.best and not isinstance(config, FinetuneConfig):
        raise InputError(f"{options.run} keeps no best weights; leave out --best")

    from springroll.models.byte_tokenizer import write_byte_tokenizer
    from springroll.models.hf_write import save_hf
    from springroll.train.checkpoint import load_newest

    weights = weights_of(options.run, config)
    where = folder.best if options.best else folder.checkpoints
    found, notes = load_newest(where, weights.saved, prefix=weights.prefix)
    for note in notes:
        print(note, file=sys.stderr)
    if found is None:
        raise InputError(f"{options.run} has no checkpoint that can be read")
    dtype = options.dtype or weights.dtype
    params = weights.params(found.tree)
    save_hf(options.folder, weights.shape, params, dtype=dtype, like=weights.like)
    if weights.like is None:
        write_byte_tokenizer(options.folder)
    print(
        f"wrote {weights.shape.parameters:,} {dtype} parameters of generation "
        f"{found.generation:,} to {options.folder}"
    )
    return 0


def weights_of(run: str, config: AnyConfig) -> Weights:
    """The weights of a run, by the command that trained it."""
    if isinstance(config, TrainConfig):
        from springroll.models.hf import is_hf_folder
        from springroll.train import backprop_task

        like = config.model if is_hf_folder(config.model) else None
        shape = backprop_task.model_config(config.model)
        return Weights(shape, *backprop_task.weights_of(config), like, config.dtype)
    if isinstance(config, FinetuneConfig):
        from springroll.train.finetune import weights_of
        from springroll.train.finetune_setup import prepare

        setup = prepare(config)
        short = "bfloat16" if config.weights == "bfloat16" else "float32"
        return Weights(setup.model.config, *weights_of(config, setup), str(setup.folder), short)
    raise InputError(
        f"{run} is a run of springroll {config.command}, whose model has no form that "
        "transformers knows"
    )
