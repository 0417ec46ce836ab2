"""Text models beside the lines to beat, in bits per byte: what jobs on text print."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from rich.table import Table

from springroll.tasks.corpus import load_corpus
from springroll.tasks.text import baselines, validation

BASELINES = ("unigram", "bigram", "gzip")


def lines_to_beat(lines: Mapping[str, float]) -> str:
    """One line for the beginning of a run, from what `baselines` returns."""
    figures = ", ".join(f"{name} {lines[f'{name}_bits_per_byte']:.3f}" for name in BASELINES)
    return f"to beat, in bits/byte of the validation text: {figures}"


def report_rows(summary: Mapping[str, float]) -> list[tuple[str, str]]:
    """Lines for the end of a run: its score, and how far it is from each baseline."""
    valid = summary.get("valid_bits_per_byte")
    rows = [] if valid is None else [("validation", f"{valid:.3f} bits/byte")]
    for name in BASELINES:
        line = summary.get(f"{name}_bits_per_byte")
        if line is not None:
            rows.append((name, f"{line:.3f} bits/byte{_distance(valid, line)}"))
    return rows


def _distance(valid: float | None, line: float) -> str:
    if valid is None:
        return ""
    return f", beaten by {line - valid:.3f}" if valid < line else f", {valid - line:.3f} to go"


class TextSample(NamedTuple):
    """Which text a trained model is scored on."""

    trained_on: str  # the corpus of the run, by name
    digest: str | None  # and by its hash
    other: str | None = None  # another text instead
    rows: int = 128
    tokens: int = 1024  # bytes per row


def text_figures(
    bits: Callable[[np.ndarray], float], text: TextSample
) -> dict[str, str | int | float]:
    """Bits per byte of a model and of the baselines, and of how many bytes of what.

    Of the text the run was trained on only the validation part counts; of another text all of it.

    Args:
        bits: rows (n, T + 1) uint8 -> mean bits per predicted byte.
        text: what to score.

    Raises:
        InputError: the text cannot be read or is too short.
    """
    corpus = load_corpus(text.other or text.trained_on)
    same = corpus.digest == text.digest
    if text.other is None and not same:
        print(
            f"note: {text.trained_on} has changed since the run began; its validation text may "
            f"hold what was trained on",
            file=sys.stderr,
        )
    if text.other is not None and not same:
        corpus = corpus._replace(valid=np.concatenate([corpus.train, corpus.valid]))
    sample = validation(corpus, text.rows, text.tokens)
    return {
        "data": corpus.name,
        "bytes": int(sample[:, 1:].size),
        "bits_per_byte": bits(sample),
        **baselines(sample),
    }


def text_table(title: str, figures: Mapping[str, str | int | float]) -> Table:
    """What `text_figures` returns, for people."""
    caption = f"{figures['bytes']:,} bytes of {figures['data']}"
    names: Sequence[tuple[str, str]] = [("the run", "bits_per_byte")]
    names = [*names, *((name, f"{name}_bits_per_byte") for name in BASELINES)]
    table = Table("bits per byte", "", title=title, caption=caption)
    for label, name in names:
        table.add_row(label, f"{figures[name]:.4f}")
    return table
