"""Language-model training by gradients: a corpus, a decoder, an optimizer and the loop.

Importing this file imports no JAX.
"""

from typing import TYPE_CHECKING

from springroll.train.config import TrainConfig

if TYPE_CHECKING:
    from rich.console import Console

    from springroll.run.loop import Result
    from springroll.train.build import Training


def train(config: TrainConfig, console: "Console | None" = None) -> "Result":
    """Run it: a new run folder, or an old one gone on with; progress on `console`.

    Raises:
        InputError: the corpus or model cannot be read, a step does not fit in memory, the folder
            holds another run, or a figure is off.
    """
    from springroll.cpu import use_cpu_devices
    from springroll.memory import allow_page_locking
    from springroll.run.folder import open_run
    from springroll.run.loop import run
    from springroll.train.build import build

    allow_page_locking()
    use_cpu_devices(config.devices or 1)
    if config.resume:
        folder, config = open_run(config, TrainConfig())
        made = build(config)
    else:
        made = build(config.resolved())  # first: wrong options leave no folder behind
        folder, config = open_run(made.config, TrainConfig())
    if console is not None:
        console.print(opening(config, made))
        console.print(made.memory.table())
    return run(config, made.task, folder, console=console)


def opening(config: TrainConfig, made: "Training") -> str:
    """Two lines before training starts: what learns from what, and the lines to beat."""
    model, lines = made.model.config, made.lines
    active = f" ({model.active_parameters:,} active)" if getattr(model, "experts", 0) else ""
    per_step = config.batch * config.accumulate * config.sequence
    return (
        f"{config.model}: {model.parameters:,} {config.dtype} parameters{active}, "
        f"{config.optimizer}, {per_step:,} tokens a step; {made.corpus}\n"
        "to beat, in bits/byte of the validation text: "
        f"unigram {lines['unigram_bits_per_byte']:.3f}, "
        f"bigram {lines['bigram_bits_per_byte']:.3f}, gzip {lines['gzip_bits_per_byte']:.3f}"
    )
