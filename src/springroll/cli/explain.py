"""`springroll explain TARGET`: how each parameter of a model would be perturbed, and why."""

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from springroll.cli.options import parse
from springroll.cli.trained import AnyConfig, open_folder
from springroll.errors import InputError, suggestion
from springroll.finetune.config import FinetuneConfig
from springroll.pretrain.config import PretrainConfig
from springroll.rl.config import RLConfig
from springroll.train.config import TrainConfig

WIDE = 140  # columns where nothing says how many there are


@dataclass(frozen=True, kw_only=True)
class ExplainOptions:
    """A table of every parameter: its shape, how it is perturbed, how much noise that takes, why.

    The target is a built-in model (`egg`, with the options below, or a decoder such as
    `llama-60m`), the folder of a run, or MODULE:FUNCTION, a function without arguments that
    returns (fn, params, *args). Nothing is computed; params and args may be
    `jax.ShapeDtypeStruct`s.
    """

    target: Annotated[str, tyro.conf.Positional]
    """`egg`, a decoder by name, a run folder, or MODULE:FUNCTION."""
    n_layers: int = 6
    """Layers of `egg`."""
    hidden: int = 256
    """Width of `egg`."""
    precision: Literal["int8", "compat", "float32", "bfloat16"] = "int8"
    """Arithmetic of `egg`."""


def run(argv: Sequence[str]) -> int:
    """Print the table."""
    options = parse(ExplainOptions, argv, prog="springroll explain")
    fn, params, *args = target_of(options)

    from rich.console import Console

    from springroll.thin.report import explain

    width = None if sys.stdout.isatty() else WIDE
    Console(width=width).print(explain(fn, params, *args))
    return 0


def target_of(options: ExplainOptions) -> tuple[Any, ...]:
    """(fn, params, *args) of what the target names."""
    if options.target in MODELS:
        return MODELS[options.target](options)
    if Path(options.target).is_dir():
        return explained(open_folder(options.target)[1])
    if ":" in options.target:
        return from_function(options.target)
    from springroll.models.decoder_config import CONFIGS

    if options.target in CONFIGS:
        return explained(TrainConfig(model=options.target))
    known = [*MODELS, *CONFIGS]
    raise InputError(
        f"{options.target} is no model, run folder or MODULE:FUNCTION"
        f"{suggestion(options.target, known)}; models: {', '.join(known)}"
    )


def built_in_egg(options: ExplainOptions) -> tuple[Any, ...]:
    """The byte model at the size of the options."""
    return explained(
        PretrainConfig(
            n_layers=options.n_layers, hidden=options.hidden, precision=options.precision
        )
    )


MODELS: dict[str, Callable[[ExplainOptions], tuple[Any, ...]]] = {"egg": built_in_egg}


def explained(config: AnyConfig) -> tuple[Any, ...]:
    """What a run trains: the score of one stream of bytes, a loss, the logits, or a policy."""
    if isinstance(config, FinetuneConfig):
        from springroll.finetune.setup import prepare

        return prepare(config).explained()
    if isinstance(config, RLConfig):
        from springroll.rl.job import explained_policy

        return explained_policy(config)
    from springroll.cli.byte_model import byte_model

    return byte_model(config).explained()


def from_function(target: str) -> tuple[Any, ...]:
    """What MODULE:FUNCTION returns; modules in the current folder are found too."""
    module_name, _, name = target.partition(":")
    sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(f"cannot import {module_name}: {error}") from None
    finally:
        sys.path.remove("")
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(
            f"{module_name} has no function {name!r}{suggestion(name, vars(module))}; "
            f"expected one that returns (fn, params, *args)"
        )
    made = function()
    if not isinstance(made, tuple) or len(made) < 2 or not callable(made[0]):
        raise InputError(
            f"{target} returned {type(made).__name__}; expected a tuple (fn, params, *args)"
        )
    return made
