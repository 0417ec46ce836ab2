"""A corpus in the tokens of a model: bytes as they are, or what a tokenizer makes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from springroll.tasks.corpus import Corpus
from springroll.tokens.tokenizer import open_tokenizer

Encode = Callable[[list[str]], list[list[int]]]  # documents -> tokens of each


def tokenizer(folder: str | Path) -> Encode:
    """The tokenizer in a checkpoint's folder: of a document its tokens, with what it puts before
    every text, and the token that ends a text, once between two documents.

    Raises:
        InputError: as `open_tokenizer`.
    """
    found = open_tokenizer(folder)
    after = [] if found.end & {*found.encode("")} else sorted(found.end)[:1]
    return lambda texts: [[*tokens, *after] for tokens in found.encode_all(texts)]


def tokenized(corpus: Corpus, encode: Encode) -> tuple[Corpus, float]:
    """The corpus with token numbers (int32) in place of bytes, and tokens per byte of validation.

    Documents are encoded one by one and joined.
    """

    def tokens(text: np.ndarray) -> np.ndarray:
        documents = text.tobytes().split(b"\0")
        found = encode([each.decode(errors="replace") for each in documents if each])
        return np.concatenate([np.asarray(each, np.int32) for each in found])

    valid = tokens(corpus.valid)
    return corpus._replace(train=tokens(corpus.train), valid=valid), valid.size / corpus.valid.size
