"""What jobs on text share: scores in bits per byte beside the lines to beat, and writing."""

from collections.abc import Callable, Mapping
from typing import Protocol, cast

import numpy as np
from rich.table import Table

from springroll.errors import InputError
from springroll.generate.byte_model import ByteModel, written
from springroll.program import program
from springroll.run import job
from springroll.run.report import closing_rows
from springroll.run.weights import load_weights
from springroll.tasks.corpus import Corpus, load_corpus
from springroll.tasks.text import baselines, validation
from springroll.trees import PyTree

BASELINES = ("unigram", "bigram", "gzip")


def lines_to_beat(lines: Mapping[str, float]) -> str:
    """One line for the beginning of a run, from what `baselines` returns."""
    figures = ", ".join(f"{name} {lines[f'{name}_bits_per_byte']:.3f}" for name in BASELINES)
    return f"to beat, in bits/byte of the validation text: {figures}"


def text_report(out: str, summary: job.Summary, iteration: str = "generation") -> job.Rows:
    """The score beside the lines to beat, the speed, and what to do next."""
    valid = summary.get("valid_bits_per_byte")
    rows = [] if valid is None else [("validation", f"{valid:.3f} bits/byte")]
    for name in BASELINES:
        line = summary.get(f"{name}_bits_per_byte")
        if line is not None:
            rows.append((name, f"{line:.3f} bits/byte{_distance(valid, line)}"))
    closing = closing_rows(out, summary, iteration=iteration)
    return [*rows, *closing, ("next", f"{program()} sample {out}")]


def _distance(valid: float | None, line: float) -> str:
    if valid is None:
        return ""
    return f", beaten by {line - valid:.3f}" if valid < line else f", {valid - line:.3f} to go"


class TextConfig(Protocol):
    """The options that jobs on text have in common."""

    data: str
    valid_streams: int
    valid_tokens: int


def evaluate_text(
    run: job.OpenRun[job.C],
    saved: job.SavedWeights,
    bits: Callable[[PyTree, np.ndarray], float],
    options: job.EvalOptions,
    read: Callable[[Corpus], tuple[Corpus, float]] = lambda corpus: (corpus, 1.0),
) -> job.Evaluation:
    """Bits per byte of the newest weights, beside those of the baselines.

    Of the text the run was trained on only the validation part counts; of another text all of it.

    Args:
        run: the run, whose config has the fields of `TextConfig`.
        saved: where its weights are.
        bits: (weights, rows (n, T + 1) of bytes or tokens) -> mean bits per predicted one.
        options: another text, or another size of the sample.
        read: the text in what the model reads, and how many of these a byte is.

    Raises:
        InputError: there is no checkpoint; the text cannot be read or is too short.
    """
    weights = load_weights(run, saved)
    config = cast(TextConfig, run.config)
    corpus = load_corpus(options.data or config.data)
    same = corpus.digest == weights.identity.get("corpus")
    notes = list(weights.notes)
    if options.data is None and not same:
        notes.append(
            f"note: {config.data} has changed since the run began; its validation text may hold "
            f"what was trained on"
        )
    if options.data is not None and not same:
        corpus = corpus._replace(valid=np.concatenate([corpus.train, corpus.valid]))
    rows, tokens = options.streams or config.valid_streams, options.tokens or config.valid_tokens
    sample = validation(corpus, rows, tokens)
    coded, per_byte = read(corpus)
    found = bits(weights.params, validation(coded, rows, tokens))
    figures: job.Figures = {
        "run": run.path,
        "generation": weights.generation,
        "data": corpus.name,
        "bytes": int(sample[:, 1:].size),
        "bits_per_byte": found * per_byte,
        **baselines(sample),
    }
    table = Table(
        "bits per byte",
        "",
        title=f"{run.path} at generation {weights.generation:,}",
        caption=f"{figures['bytes']:,} bytes of {corpus.name}",
    )
    names = {"the run": "bits_per_byte"} | {name: f"{name}_bits_per_byte" for name in BASELINES}
    for label, name in names.items():
        table.add_row(label, f"{figures[name]:.4f}")
    return job.Evaluation(figures, table, notes)


def sample_bytes(
    run: job.OpenRun[job.C], saved: job.SavedWeights, model: ByteModel, options: job.SampleOptions
) -> job.Sample:
    """Bytes that follow the prompt.

    Raises:
        InputError: a chat template is asked for; there is no checkpoint.
    """
    if options.chat:
        raise InputError(f"{run.path} reads bytes and has no chat template; leave out --chat")
    weights = load_weights(run, saved)
    return job.Sample(written(model, weights.params, options), weights.notes)
