"""The lines to beat: what simple statistics of a text make of that same text, in bits per byte."""

import gzip

import numpy as np


def unigram_bits(text: np.ndarray) -> float:
    """Entropy of the byte frequencies: -sum_b p(b) log2 p(b).

    No model that ignores the bytes before can do better on this text. Args: `text`, (n,) uint8, or
    (streams, T + 1) as `validation` gives it, where the first byte of a row is only context.
    """
    return _entropy(np.bincount(_predicted(text), minlength=256))


def bigram_bits(text: np.ndarray) -> float:
    """Conditional entropy given the byte before: -sum_ab p(a, b) log2 p(b | a).

    Of the text itself, so of a short text it is lower than any bigram table could reach on new
    text. In (n,) uint8 the first byte is only context; in (streams, T + 1) the first of every row.
    """
    rows = np.atleast_2d(text).astype(np.intp)
    before, after = rows[:, :-1].ravel(), rows[:, 1:].ravel()
    pairs = np.bincount(256 * before + after, minlength=65536)
    return _entropy(pairs) - _entropy(pairs.reshape(256, 256).sum(axis=1))


def gzip_bits(text: np.ndarray) -> float:
    """Size under gzip level 9, in bits per byte. Takes what `unigram_bits` takes."""
    predicted = _predicted(text)
    return 8 * len(gzip.compress(predicted.tobytes(), 9, mtime=0)) / predicted.size


def baselines(text: np.ndarray) -> dict[str, float]:
    """The three lines by the names that summary.json gives them."""
    return {
        "unigram_bits_per_byte": unigram_bits(text),
        "bigram_bits_per_byte": bigram_bits(text),
        "gzip_bits_per_byte": gzip_bits(text),
    }


def _predicted(text: np.ndarray) -> np.ndarray:
    return text if text.ndim == 1 else text[:, 1:].ravel()


def _entropy(counts: np.ndarray) -> float:
    """Bits, of the distribution that the counts are proportional to."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log2(p)).sum())
