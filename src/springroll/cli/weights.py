"""The weights of a run, by the command that trained it, for commands that read or write them."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from springroll.cli.trained import AnyConfig, open_folder
from springroll.errors import InputError
from springroll.finetune.config import FinetuneConfig
from springroll.train.config import TrainConfig


class Weights(NamedTuple):
    """What a run learnt, on the device, and where it comes from."""

    shape: Any  # the model's configuration
    params: Any
    like: str | None  # the Hugging Face folder that the run began with
    dtype: Literal["float32", "bfloat16"]
    generation: int
    notes: list[str]  # checkpoints passed over, one line each


class Saved(NamedTuple):
    """Where in a checkpoint the weights are."""

    shape: Any
    part: Any  # shapes of the part that holds them
    prefix: str  # where that part is
    params: Callable[[Any], Any]  # the part -> the weights
    like: str | None
    dtype: Literal["float32", "bfloat16"]


def load_weights(run: str, best: bool = False) -> Weights:
    """The newest weights of a run of `train` or `finetune`; with `best` those that did best.

    Raises:
        InputError: no run, none of these, or no checkpoint that can be read.
    """
    folder, config = open_folder(run)
    if best and not isinstance(config, FinetuneConfig):
        raise InputError(f"{run} keeps no best weights; leave out --best")

    from springroll.run.checkpoint import load_newest

    saved = saved_weights(run, config)
    where = folder.best if best else folder.checkpoints
    found, notes = load_newest(where, saved.part, prefix=saved.prefix)
    if found is None:
        raise InputError(
            f"{run} has no checkpoint that can be read{''.join(f' ({note})' for note in notes)}"
        )
    params = saved.params(found.tree)
    return Weights(saved.shape, params, saved.like, saved.dtype, found.generation, notes)


def saved_weights(run: str, config: AnyConfig) -> Saved:
    """Where the weights of a run with that config are."""
    if isinstance(config, TrainConfig):
        from springroll.models.hf.load import is_hf_folder
        from springroll.train import build as backprop_task

        like = config.model if is_hf_folder(config.model) else None
        shape = backprop_task.model_config(config.model)
        return Saved(shape, *backprop_task.weights_of(config), like, config.dtype)
    if isinstance(config, FinetuneConfig):
        from springroll.finetune.job import weights_of
        from springroll.finetune.setup import prepare

        setup = prepare(config)
        short = "bfloat16" if config.weights == "bfloat16" else "float32"
        return Saved(setup.model.config, *weights_of(config, setup), str(setup.folder), short)
    raise InputError(
        f"{run} is a run of springroll {config.command}, whose model has no form that "
        "transformers knows"
    )
