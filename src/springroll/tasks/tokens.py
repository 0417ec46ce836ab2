"""A corpus in the tokens of a model: bytes as they are, or what a tokenizer makes of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from springroll.errors import InputError
from springroll.tasks.corpus import Corpus

Encode = Callable[[list[str]], list[list[int]]]  # documents -> tokens of each


def tokenizer(folder: str | Path) -> Encode:
    """The tokenizer in a Hugging Face folder, special tokens included as it puts them.

    Raises:
        InputError: the package `tokenizers` or the file is missing, or it cannot be read.
    """
    path = Path(folder) / "tokenizer.json"
    try:
        package: Any = importlib.import_module("tokenizers")
    except ImportError:
        raise InputError(
            f"{path} needs the package 'tokenizers': pip install 'springroll[hf]'"
        ) from None
    if not path.exists():
        raise InputError(f"{folder} holds no tokenizer.json, so its text cannot be read")
    try:
        loaded = package.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises plain Exception
        raise InputError(f"cannot read {path}: {error}") from None
    return lambda texts: [found.ids for found in loaded.encode_batch(texts)]


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
