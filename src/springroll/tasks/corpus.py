"""A corpus of bytes: documents, each after a 0x00, split into training and validation text."""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from springroll.errors import InputError
from springroll.ranges import Range, check_number
from springroll.tasks.sources import documents

VALID_SHARE = 0.05  # of documents, and of prompts
MIN_BYTES = 1024  # anything less is a mistake rather than a corpus
MIN_DOCUMENTS = 20  # with fewer, a twentieth is none: they are cut into pieces
PIECE = 4096  # bytes, at least


class Corpus(NamedTuple):
    """Training and validation text, and where they come from."""

    name: str  # the source as given
    train: np.ndarray  # (bytes,) uint8: documents in the order of their hashes, each after a 0x00
    valid: np.ndarray  # (bytes,) uint8
    num_train: int  # documents
    num_valid: int
    digest: str  # 16 hex digits of the whole; a resumed run must find the same

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.train.size:,} bytes of training text in {self.num_train:,} "
            f"documents, {self.valid.size:,} bytes of validation text in {self.num_valid:,}"
        )


def load_corpus(source: str, *, max_bytes: int | None = None) -> Corpus:
    """Read a corpus, split it by document, and shuffle it.

    Side and order of a document follow from a hash of its content, not from its path or the
    machine. A twentieth of the documents, those of lowest hash, is validation text; equal documents
    fall on the same side. A document longer than a hundredth of the corpus (and twice the mean) is
    always training text, as it alone would decide what validation measures. 0x00 bytes within
    documents are removed.

    A corpus of fewer than `MIN_DOCUMENTS` documents, such as a single file, is cut into pieces that
    count as documents: at the first line end after every `PIECE` bytes, or after twice as many
    bytes when no line ends there. A small corpus makes smaller pieces, of 256 bytes or more, so
    that there are about 64.

    Args:
        source: `stdlib`, a file, a folder, `minipile`, or `hub:OWNER/NAME` (see `sources.py`).
        max_bytes: use no more than the first so many bytes of the source.

    Raises:
        InputError: the source cannot be read, or holds less than `MIN_BYTES` bytes.
    """
    if max_bytes is not None:
        check_number("max_bytes", max_bytes, int, Range(at_least=1, below=2**63))
    if max_bytes is not None and max_bytes < MIN_BYTES:
        raise InputError(f"max_bytes is {max_bytes}; a corpus needs {MIN_BYTES} bytes or more")
    texts = _limited(source, max_bytes)
    size = sum(map(len, texts))
    if size < MIN_BYTES:
        raise InputError(
            f"the corpus {source} holds {size} bytes of text; {MIN_BYTES} or more are needed"
        )
    if len(texts) < MIN_DOCUMENTS:
        length = min(PIECE, max(256, size // 64))
        texts = [piece for text in texts for piece in _pieces(text, length)]
    hashed = sorted((hashlib.sha256(text).digest(), text) for text in texts)
    valid, train = _split(hashed, longest=max(size // 100, 2 * size // len(texts)))
    digest = hashlib.sha256(b"".join(digest for digest, _ in hashed))
    return Corpus(
        name=source,
        train=_joined(train),
        valid=_joined(valid),
        num_train=len(train),
        num_valid=len(valid),
        digest=digest.hexdigest()[:16],
    )


def is_held_out(digest: bytes) -> bool:
    """Whether what has this hash is for validation: `VALID_SHARE` of all."""
    return int.from_bytes(digest[:8], "big") < int(VALID_SHARE * 2**64)


def _split(hashed: list[tuple[bytes, bytes]], longest: int) -> tuple[list[bytes], list[bytes]]:
    """Validation and training documents, at least one of each, both in the order of the hashes."""
    fit = [index for index, (_, text) in enumerate(hashed) if len(text) <= longest]
    chosen = [index for index in fit if is_held_out(hashed[index][0])]
    side = set((chosen or fit[:1])[: len(hashed) - 1])
    valid = [text for index, (_, text) in enumerate(hashed) if index in side]
    train = [text for index, (_, text) in enumerate(hashed) if index not in side]
    return valid, train


def _limited(source: str, max_bytes: int | None) -> list[bytes]:
    """The documents, cleaned, without empty ones, up to the limit; the last one is cut to fit."""
    left = float("inf") if max_bytes is None else max_bytes
    texts = []
    for document in documents(source, max_bytes):
        text = document.replace(b"\0", b"")
        if left < len(text):
            text = text[: int(left)]
        if text:
            texts.append(text)
        left -= len(text)
        if left <= 0:
            break
    return texts


def _pieces(text: bytes, length: int) -> Iterator[bytes]:
    start = 0
    while start < len(text):
        line_end = text.find(b"\n", start + length, start + 2 * length)
        end = line_end + 1 if line_end >= 0 else start + 2 * length
        yield text[start:end]
        start = end


def _joined(texts: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"\0" + b"\0".join(texts), np.uint8)
