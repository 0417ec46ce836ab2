"""Text as batches: many streams through the training text, a sample of the validation text.

Stream j is a contiguous slab of the text and moves on by T bytes every generation, so that members
can keep their own recurrent state between generations.
"""

from dataclasses import dataclass

import numpy as np

from springroll.errors import InputError
from springroll.tasks.corpus import Corpus


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


def streams(text: np.ndarray, num_streams: int, tokens: int) -> Streams:
    """Cut `text`, (n,) uint8, into `num_streams` slabs to read `tokens` bytes at a time from.

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
