"""`springroll export RUN FOLDER`: the weights of a run as a Hugging Face folder."""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from springroll.cli.jobs import open_path
from springroll.cli.options import parse
from springroll.errors import InputError
from springroll.run.options import COUNT, check_ranges, option

if TYPE_CHECKING:
    from springroll.models.hf.lora import Loss


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
    lora_rank: int | None = option(None, COUNT)
    """Write the best adapter of this rank, as PEFT reads it, of what the run changed in the model
    that it began with, instead of the whole model."""

    adapter: bool = False
    """Write the adapter that a run of `springroll train --optimizer lora` trained, as PEFT reads
    it, instead of the whole model with the adapter merged into it."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.lora_rank is not None and self.adapter:
            raise InputError("--adapter writes the one that was trained; leave out --lora-rank")
        if (self.lora_rank is not None or self.adapter) and self.dtype is not None:
            which = "--adapter" if self.adapter else "--lora-rank"
            raise InputError(f"an adapter is float32; leave out --dtype or {which}")


def run(argv: Sequence[str]) -> int:
    """Write the folder, shard by shard."""
    options = parse(ExportOptions, argv, prog="springroll export")
    job, opened = open_path(options.run, best=options.best)
    if not job.exports:
        raise opened.refused("whose model has no form that transformers knows")
    saved = job.weights(opened)

    from springroll.models.hf.lora import save_adapter, save_lora
    from springroll.models.hf.save import save_hf
    from springroll.run.weights import load_weights
    from springroll.tokens.byte_tokenizer import write_byte_tokenizer

    if options.adapter:
        if saved.adapter is None or saved.like is None:
            raise opened.refused("which trained no adapter; --lora-rank makes one of its change")
        saved = saved._replace(params=lambda trained: trained)
    elif options.lora_rank is not None and saved.adapter is not None:
        raise opened.refused("which trained an adapter; --adapter writes it")
    weights = load_weights(opened, saved, best=options.best)
    for note in weights.notes:
        print(note, file=sys.stderr)
    if options.adapter and saved.adapter and saved.like:
        save_adapter(options.folder, saved.model, weights.params, saved.like, saved.adapter)
        print(f"wrote an adapter of rank {saved.adapter.rank} for {saved.like} to {options.folder}")
        return 0
    if options.lora_rank is not None:
        if saved.like is None:
            raise opened.refused("which began with no model that an adapter could be added to")
        losses = save_lora(
            options.folder, saved.model, weights.params, saved.like, options.lora_rank
        )
        for line in described(losses):
            print(line)
        print(f"wrote an adapter of rank {options.lora_rank} for {saved.like} to {options.folder}")
        return 0
    dtype = options.dtype or saved.dtype
    save_hf(options.folder, saved.model, weights.params, dtype=dtype, like=saved.like)
    if saved.like is None:
        write_byte_tokenizer(options.folder)
    print(
        f"wrote {saved.model.parameters:,} {dtype} parameters of generation "
        f"{weights.generation:,} to {options.folder}"
    )
    return 0


def described(losses: "Mapping[str, Loss]") -> Iterator[str]:
    """How much of the change an adapter leaves out, by kind of weight and in all."""
    yield "left out of the change, by norm:"
    for kind, loss in losses.items():
        yield f"  {kind:26} {loss.relative:8.2%}"
    whole = sum(loss.change for loss in losses.values())
    left = sum(loss.left_out for loss in losses.values())
    yield f"  {'in all':26} {math.sqrt(left / whole) if whole else 0.0:8.2%}"
