"""`springroll train`: train a decoder on text by gradients, full or low-rank."""

from collections.abc import Sequence

from springroll.cli.pretrain import report
from springroll.cli.recipe import config_of
from springroll.train.config import TrainConfig

DESCRIPTION = """\
Train a decoder-only language model on text by gradients.

  springroll train --model llama-1m --optimizer lowgrad --data stdlib --steps 300
"""


def run(argv: Sequence[str]) -> int:
    """Train; the exit code is 0 when the budget was spent, 130 after Ctrl-C."""
    config = config_of(TrainConfig, argv, DESCRIPTION)

    from rich.console import Console

    from springroll.train.job import train

    result = train(config, console=Console(stderr=True))
    if result.signal is None:
        Console().print(report(config.out, result.summary))
    return result.exit_code
