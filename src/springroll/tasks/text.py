"""Text as batches, in bytes or in the tokens of a model, and the baselines to beat.

Stream j is a contiguous slab of the text and moves on by T bytes every generation, so that members
can keep their own recurrent state between generations. Baselines are what simple statistics of a
text make of that same text, in bits per byte.
"""

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from springroll.errors import InputError
from springroll.tasks.corpus import Corpus
from springroll.tokens.tokenizer import open_tokenizer
from springroll.typed_call import typed_call


@dataclass(frozen=True)
class Streams:
    """The training text cut into contiguous slabs, one per stream. Made by `streams`."""

    slabs: np.ndarray  # (streams, bytes per slab) uint8
    tokens: int  # T, by which each stream moves on per generation

    def batch(self, generation: int) -> np.ndarray:
        """The bytes of a generation: (streams, T + 1) uint8, the last of each row only a target.

        A pure function of the generation, so a resumed run needs no cursor. The first byte of a row
        is the last of the same row a generation before. At the end of its slab a stream starts
        over.
        """
        length = self.slabs.shape[1]
        start = generation * self.tokens % length
        end = start + self.tokens + 1
        if end <= length:
            return self.slabs[:, start:end]
        return np.concatenate([self.slabs[:, start:], self.slabs[:, : end - length]], axis=1)

    @property
    def generations(self) -> float:
        """After how many generations every stream has gone through its slab once."""
        return self.slabs.shape[1] / self.tokens


@typed_call
def streams(text: np.ndarray, num_streams: int, tokens: int) -> Streams:
    """Cut a text into slabs that are read side by side.

    Args:
        text: (n,) uint8, or int32 token numbers.
        num_streams: slabs.
        tokens: read of each slab per generation.

    Raises:
        InputError: a slab would be shorter than one batch.
    """
    if num_streams < 1 or tokens < 1:
        raise InputError(f"{num_streams} streams of {tokens} tokens: both must be 1 or more")
    length = len(text) // num_streams
    if length < tokens + 1:
        raise InputError(
            f"the corpus has {len(text):,} bytes of training text, too few for {num_streams:,} "
            f"streams of {tokens:,} tokens; at most {len(text) // (tokens + 1):,} streams fit"
        )
    return Streams(text[: num_streams * length].reshape(num_streams, length), tokens)


@typed_call
def validation(corpus: Corpus, num_streams: int, tokens: int) -> np.ndarray:
    """A fixed sample of the validation text: (streams, T + 1) uint8, each row begun without memory.

    The rows are spread evenly over the text and do not overlap. What they predict, `[:, 1:]`, is
    the text that the baselines are taken of. Where the text is too short there are fewer rows;
    where it is shorter than one row, that row is shorter.
    """
    available = corpus.valid.size - 1
    tokens = min(tokens, available)
    num_streams = max(1, min(num_streams, available // tokens))
    starts = np.arange(num_streams) * (available - tokens) // max(num_streams - 1, 1)
    return corpus.valid[starts[:, None] + np.arange(tokens + 1)]


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


@typed_call
def baselines(text: np.ndarray) -> dict[str, float]:
    """The three baselines of a text by the names that summary.json gives them, in bits per byte.

    Args:
        text: what `unigram_bits` takes.
    """
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


Encode = Callable[[list[str]], list[list[int]]]  # documents -> tokens of each


def document_encoder(folder: str | Path) -> Encode:
    """The tokenizer in a checkpoint's folder: of a document its tokens, with what it puts before
    every text, and the token that ends a text, once between two documents.

    Raises:
        InputError: as `open_tokenizer`.
    """
    tokenizer = open_tokenizer(folder)
    after = [] if tokenizer.end & {*tokenizer.encode("")} else sorted(tokenizer.end)[:1]
    return lambda texts: [[*tokens, *after] for tokens in tokenizer.encode_all(texts)]


@typed_call
def tokenized(corpus: Corpus, encode: Encode) -> tuple[Corpus, float]:
    """The corpus with token numbers (int32) in place of bytes, and tokens per byte of validation.

    Documents are encoded one by one and joined.
    """

    def tokens(text: np.ndarray) -> np.ndarray:
        documents = text.tobytes().split(b"\0")
        encoded = encode([document.decode(errors="replace") for document in documents if document])
        return np.concatenate([np.asarray(document, np.int32) for document in encoded])

    valid = tokens(corpus.valid)
    return corpus._replace(train=tokens(corpus.train), valid=valid), valid.size / corpus.valid.size
