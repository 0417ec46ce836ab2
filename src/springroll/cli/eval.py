"""`springroll eval RUN`: bits per byte of a run, its answers to held-out problems, its returns."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from springroll.atomic import write_json
from springroll.cli.options import parse
from springroll.cli.trained import Trained, load, open_folder
from springroll.cli.weights import load_weights
from springroll.errors import InputError
from springroll.finetune.config import FinetuneConfig
from springroll.rl.config import RLConfig

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Bits per byte of the weights in a run's newest checkpoint, beside the lines to beat.

    The text is the run's validation sample, or, with --data, a sample of all of another text. Of a
    run of `finetune` it is the answers to held-out problems that are judged, of one of `rl` the
    returns of episodes.
    """

    run: Annotated[str, tyro.conf.Positional]
    """The folder of a run."""
    data: str | None = None
    """Other text: `stdlib`, a file, a folder, `minipile`, or a hub name."""
    streams: int | None = None
    """Rows of the sample, each read from the beginning of a memory; default: as in training."""
    tokens: int | None = None
    """Bytes per row; default: as in training."""
    problems: int | None = None
    """Held-out problems; default: as in training."""
    episodes: int | None = None
    """Episodes of a policy; default: as in training."""
    best: bool = False
    """Of a run of `finetune` or `rl`: the weights that validated best instead of the newest."""
    json: bool = False
    """Print one JSON object instead of a table."""
    out: str | None = None
    """Also write the JSON to this file."""

    def __post_init__(self) -> None:
        for name in ("streams", "tokens", "problems", "episodes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")


def run(argv: Sequence[str]) -> int:
    """Evaluate and print."""
    options = parse(EvalOptions, argv, prog="springroll eval")
    config = open_folder(options.run)[1]
    if isinstance(config, FinetuneConfig):
        figures, shown = answered(options, config), answers_table
    elif isinstance(config, RLConfig):
        figures, shown = returned(options, config), returns_table
    else:
        trained = load(options.run)
        _say(trained.notes)
        figures, shown = evaluated(trained, options), table
    if options.out is not None:
        write_json(Path(options.out), figures)
    if options.json:
        print(json.dumps(figures))
    else:
        from rich.console import Console

        Console().print(shown(figures))
    return 0


def answered(options: EvalOptions, config: FinetuneConfig) -> dict[str, Any]:
    """The figures of the answers to held-out problems, and of which weights."""
    from springroll.finetune.setup import prepare

    count = options.problems or config.eval_problems
    setup = prepare(dataclasses.replace(config, eval_problems=count))
    weights = load_weights(options.run, options.best)
    _say(weights.notes)
    return {
        "run": options.run,
        "generation": weights.generation,
        "problems": len(setup.held_out.problems),
        **setup.validated(weights.params),
    }


def returned(options: EvalOptions, config: RLConfig) -> dict[str, Any]:
    """The returns of a policy, and of which weights."""
    from springroll.rl.job import evaluated_run

    count = options.episodes or config.eval_episodes
    given = dataclasses.replace(config, eval_episodes=count)
    generation, figures, notes = evaluated_run(given, options.run, options.best)
    _say(notes)
    return {"run": options.run, "generation": generation, "episodes": count, **figures}


def _say(notes: list[str]) -> None:
    for note in notes:
        print(note, file=sys.stderr)


def evaluated(trained: Trained, options: EvalOptions) -> dict[str, Any]:
    """The figures: bits per byte of the model and of the three lines, and what they are of."""
    from springroll.tasks.baselines import baselines

    name, sample = sample_of(trained, options)
    return {
        "run": options.run,
        "generation": trained.generation,
        "data": name,
        "bytes": int(sample[:, 1:].size),
        "bits_per_byte": trained.model.bits(trained.params, sample),
        **baselines(sample),
    }


def sample_of(trained: Trained, options: EvalOptions) -> tuple[str, "np.ndarray"]:
    """The text to score, (rows, T + 1) uint8, and its name.

    Of the text the run was trained on only the validation part counts; of another text all of it.
    """
    import numpy as np

    from springroll.tasks.corpus import load_corpus
    from springroll.tasks.text import validation

    config = trained.config
    corpus = load_corpus(options.data or config.data)
    seen = corpus.digest == trained.identity.get("corpus")
    if options.data is None and not seen:
        print(
            f"note: {config.data} has changed since the run began; its validation text may hold "
            f"what was trained on",
            file=sys.stderr,
        )
    if options.data is not None and not seen:
        corpus = corpus._replace(valid=np.concatenate([corpus.train, corpus.valid]))
    rows, tokens = options.streams or config.valid_streams, options.tokens or config.valid_tokens
    return corpus.name, validation(corpus, rows, tokens)


def answers_table(figures: dict[str, Any]) -> "Table":
    """The figures of a run of `finetune` for people."""
    from rich.table import Table

    title = f"{figures['run']} at generation {figures['generation']:,}"
    out = Table("held-out", "", title=title, caption=f"{figures['problems']:,} problems, greedily")
    for name, value in figures.items():
        if name.startswith("valid_"):
            out.add_row(name.removeprefix("valid_").replace("_", " "), f"{value:.4g}")
    return out


def returns_table(figures: dict[str, Any]) -> "Table":
    """The figures of a run of `rl` for people."""
    from rich.table import Table

    title = f"{figures['run']} at generation {figures['generation']:,}"
    out = Table("return", "", title=title, caption=f"{figures['episodes']:,} episodes")
    out.add_row("mean", f"{figures['eval_return']:.4g}")
    out.add_row("deviation", f"{figures['eval_std']:.4g}")
    return out


def table(figures: dict[str, Any]) -> "Table":
    """The figures for people."""
    from rich.table import Table

    title = f"{figures['run']} at generation {figures['generation']:,}"
    caption = f"{figures['bytes']:,} bytes of {figures['data']}"
    out = Table("bits per byte", "", title=title, caption=caption)
    out.add_row("the run", f"{figures['bits_per_byte']:.4f}")
    for name in ("unigram", "bigram", "gzip"):
        out.add_row(name, f"{figures[f'{name}_bits_per_byte']:.4f}")
    return out
