"""`springroll explain TARGET`: how each parameter of a model would be perturbed, and why."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from springroll.cli.jobs import JOBS, job_of, open_path
from springroll.cli.options import parse
from springroll.errors import InputError, suggestion
from springroll.run.job import Explained
from springroll.run.options import COUNT, check_ranges, option
from springroll.tasks.user_code import named_function, raised_line

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
    n_layers: int = option(6, COUNT)
    """Layers of `egg`."""
    hidden: int = option(256, COUNT)
    """Width of `egg`."""
    precision: Literal["int8", "compat", "float32", "bfloat16"] = "int8"
    """Arithmetic of `egg`."""

    def __post_init__(self) -> None:
        check_ranges(self)


def run(argv: Sequence[str]) -> int:
    """Print the table."""
    options = parse(ExplainOptions, argv, prog="springroll explain")
    target = target_of(options)

    from rich.console import Console

    from springroll.thin.report import explain

    width = None if sys.stdout.isatty() else WIDE
    Console(width=width).print(explain(target.fn, target.params, *target.args))
    return 0


def target_of(options: ExplainOptions) -> Explained:
    """What the target names."""
    if Path(options.target).is_dir():
        job, opened = open_path(options.target)
        return job.explain(opened.config)
    if ":" in options.target:
        return from_function(options.target)
    sizes = {
        "n_layers": options.n_layers,
        "hidden": options.hidden,
        "precision": options.precision,
    }
    known: list[str] = []
    for job in map(job_of, JOBS):
        names = job.models()
        if options.target in names and job.of_model is not None:
            return job.explain(job.of_model(options.target, sizes))
        known += names
    raise InputError(
        f"{options.target} is no model, run folder or MODULE:FUNCTION"
        f"{suggestion(options.target, known)}; models: {', '.join(known)}"
    )


def from_function(target: str) -> Explained:
    """What MODULE:FUNCTION returns; modules in the current folder are found too."""
    import jax

    _, function = named_function(target)
    try:
        made = function()
    except Exception as error:  # whatever the user's function raises
        raise InputError(f"{target} raised {raised_line(error)}") from None
    if not isinstance(made, tuple) or len(made) < 2 or not callable(made[0]):
        raise InputError(
            f"{target} returned {type(made).__name__}; expected a tuple (fn, params, *args)"
        )
    fn, params, *args = made
    try:
        jax.eval_shape(fn, params, *args)
    except Exception as error:
        raise InputError(f"the fn that {target} returned raised {raised_line(error)}") from None
    return Explained(fn, params, tuple(args))
