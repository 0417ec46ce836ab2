"""What members wrote after prompts: of a whole run, and as it comes in."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from springroll.generate.stopping import StopStrings


class Generated(NamedTuple):
    """What N members wrote after P prompts, and at what cost."""

    tokens: np.ndarray  # (N, P, max_tokens) int32; the end token is among them, then zeros
    lengths: np.ndarray  # (N, P) int32, tokens before the end token; those of a stop string count
    finished: np.ndarray  # (N, P) bool; False: max_tokens came before an end token or stop string
    stopped: np.ndarray  # (N, P) bool: finished by a stop string
    log_probabilities: np.ndarray | None  # (N, P, max_tokens) float32 of those tokens, then zeros
    steps: int  # forward passes of one token per row, of all devices
    slot_steps: int  # rows times steps, idle rows too
    row_steps: int  # rows that wrote a token, summed over steps
    prompt_tokens: int = 0  # tokens of prompts that were read, padding too

    @property
    def written(self) -> np.ndarray:
        """Tokens written, the end token too: (N, P) int32."""
        return self.lengths + (self.finished & ~self.stopped)

    @property
    def occupancy(self) -> float:
        """The share of rows in all steps that wrote a token."""
        return self.row_steps / max(1, self.slot_steps)


class Transcript:
    """What N members have written after P prompts so far, and the steps it took."""

    def __init__(
        self,
        *,
        members: int,
        prompts: int,
        most: int,
        end: frozenset[int],
        stop: StopStrings | None,
        log_probabilities: bool,
    ) -> None:
        shape = (members, prompts, most)
        self.tokens = np.zeros(shape, np.int32)
        self.log_p = np.zeros(shape, np.float32) if log_probabilities else None
        self.count = np.zeros(shape[:2], np.int32)
        self.stopped = np.zeros(shape[:2], bool)
        self.steps = self.slot_steps = self.row_steps = self.prompt_tokens = 0
        self._end, self._stop, self._most = list(end), stop, most

    def append(
        self,
        member: np.ndarray,
        prompt: np.ndarray,
        tokens: np.ndarray,
        log_p: np.ndarray | None,
        count: np.ndarray,
    ) -> np.ndarray:
        """Add the first count[i] of tokens[i] to row i, one or more; which rows end, bool (n,).

        `member`, `prompt` and `count` are (n,), `tokens` and `log_p` (n, steps).
        """
        start = self.count[member, prompt]
        new = np.arange(tokens.shape[1]) < count[:, None]
        row, step = np.nonzero(new)
        at = member[row], prompt[row], start[row] + step
        self.tokens[at] = tokens[new]
        if log_p is not None and self.log_p is not None:
            self.log_p[at] = log_p[new]
        ended = np.isin(np.take_along_axis(tokens, count[:, None] - 1, axis=1)[:, 0], self._end)
        stop = start + count
        if self._stop is not None:
            texts = self.tokens[member, prompt]
            cut = self._stop.ends(texts, start, stop - ended)
            stopped = cut >= 0
            stop = np.where(stopped, cut, stop)
            dropped = stopped[:, None] & (np.arange(texts.shape[1]) >= stop[:, None])
            row, step = np.nonzero(dropped)
            self.tokens[member[row], prompt[row], step] = 0
            if self.log_p is not None:
                self.log_p[member[row], prompt[row], step] = 0
            self.stopped[member, prompt] = stopped
            ended = ended | stopped
        self.count[member, prompt] = stop
        return ended | (stop == self._most)

    def generated(self) -> Generated:
        """All of it; every row has been written."""
        last = np.take_along_axis(self.tokens, self.count[:, :, None] - 1, axis=2)[:, :, 0]
        ended = np.isin(last, self._end) & ~self.stopped
        return Generated(
            tokens=self.tokens,
            lengths=self.count - ended,
            finished=ended | self.stopped,
            stopped=self.stopped,
            log_probabilities=self.log_p,
            steps=self.steps,
            slot_steps=self.slot_steps,
            row_steps=self.row_steps,
            prompt_tokens=self.prompt_tokens,
        )


def joined(transcripts: Sequence[Transcript]) -> Transcript:
    """What several have written, each other rows of the same run, in the first of them."""
    first, *others = transcripts
    for other in others:
        for name in ("tokens", "log_p", "count", "stopped"):
            ours, theirs = getattr(first, name), getattr(other, name)
            if ours is not None:
                np.add(ours, theirs, out=ours)
        for name in ("steps", "slot_steps", "row_steps", "prompt_tokens"):
            setattr(first, name, getattr(first, name) + getattr(other, name))
    return first
