"""Texts of tokens in rows, in the plainest way."""

import numpy as np

from springroll.models.packed import Packed


def texts_of(lengths, vocab, seed=0):
    """Random texts of so many tokens."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab, n) for n in lengths]


def packed(texts, rows, time, learnt=lambda i: True):
    """Rows with the texts of these numbers; the i-th token of a text is learnt if learnt(i)."""
    tokens, segments = np.zeros((2, len(rows), time), np.int32)
    targets = np.full((len(rows), time), -1, np.int32)
    for row, numbers in enumerate(rows):
        at = 0
        for number, text in enumerate((texts[n] for n in numbers), 1):
            for i in range(1, len(text)):
                tokens[row, at], segments[row, at] = text[i - 1], number
                targets[row, at] = text[i] if learnt(i) else -1
                at += 1
    counted = np.full(len(rows), (targets >= 0).sum() / len(rows), np.float32)
    return Packed(tokens, targets, segments, counted)
