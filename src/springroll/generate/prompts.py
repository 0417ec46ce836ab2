"""Which prompts are read together: each once for all rows that it begins, by length.

Rows that begin with the same tokens and are of the same weights (a member's answers to a prompt,
copies of the plain model) need one reading. Prompts are padded to the longest of those that are
read in the same call, so calls take prompts of about the same length. Lengths and numbers of rows
are rounded to four sizes per power of two (`rounded`), so that programs stay few.

What all prompts begin with, such as a chat template's first part, need not be read with each: see
`shared_tokens` and `springroll.generate.beginning`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from springroll.errors import InputError, brief, expect
from springroll.generate.queue import Jobs

SLICES = 8  # calls per filling, if all of them are large
LEAST = 2048  # tokens of a call below which it is not cut into smaller ones
SMALLEST = 8


class Prompts(NamedTuple):
    """P prompts: a beginning that all share, and the rest of each."""

    beginning: np.ndarray  # (S,) int32
    tokens: list[np.ndarray]  # (T_p,) int32 each
    lengths: np.ndarray  # (P,) int32
    first: np.ndarray  # (P,) int32: the first prompt with the same tokens

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], shared: int = 0) -> Prompts:
        """Prompts of which the first `shared` tokens are the same."""
        first: dict[bytes, int] = {}
        tokens = [np.asarray(prompt, np.int32) for prompt in prompts]
        for i, prompt in enumerate(tokens):
            first.setdefault(prompt.tobytes(), i)
        same = np.array([first[x.tobytes()] for x in tokens], np.int32)
        rest = [prompt[shared:] for prompt in tokens]
        return cls(tokens[0][:shared], rest, np.array([len(x) for x in rest], np.int32), same)

    @property
    def room(self) -> int:
        """Tokens that the longest prompt takes in a row's memory, padding too."""
        return len(self.beginning) + rounded(int(self.lengths.max()))

    @property
    def most_copies(self) -> int:
        """How many of the prompts are the same one, at most."""
        return int(np.bincount(self.first).max())

    def padded(self, prompt: np.ndarray) -> np.ndarray:
        """The prompts of those numbers, padded on the left to one length: (..., T) int32.

        Where a number is -1, there is nothing.
        """
        there = prompt >= 0
        width = rounded(int(self.lengths[prompt[there]].max()))
        tokens = np.zeros((*prompt.shape, width), np.int32)
        for place in np.argwhere(there):
            one = self.tokens[prompt[tuple(place)]]
            tokens[(*place, slice(width - len(one), None))] = one
        return tokens


def check_prompts(prompts: object, vocab: int | None) -> None:
    """Refuse what is no list of lists of tokens, before it is rounded or wraps around.

    Args:
        prompts: what was given.
        vocab: tokens are below it; None: any that 32 bits hold.

    Raises:
        InputError: no prompt is given, or one that is empty or holds something else than tokens.
    """
    listed = isinstance(prompts, Sequence | np.ndarray) and not isinstance(prompts, str | bytes)
    expect(listed, "prompts", prompts, "a list of prompts, each a list of tokens")
    assert isinstance(prompts, Sequence | np.ndarray)
    if not len(prompts):
        raise InputError("no prompt is given; expected at least one list of tokens")
    below = vocab or 1 << 31
    for i, prompt in enumerate(prompts):
        try:
            tokens = np.asarray(prompt)
        except (TypeError, ValueError, OverflowError):
            tokens = np.zeros(())
        if tokens.ndim == 1 and not tokens.size:
            raise InputError(f"prompt {i} has no token; begin it with the tokenizer's first token")
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            raise InputError(
                f"prompt {i} is {brief(prompt)}; expected a list of tokens, which are whole numbers"
            )
        if not 0 <= tokens.min() <= tokens.max() < below:
            odd = tokens[(tokens < 0) | (tokens >= below)][0]
            raise InputError(
                f"prompt {i} holds the token {odd}; expected whole numbers from 0 to {below - 1:,}"
            )


def common_tokens(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with, that leave each at least one more.

    0 if there are not two different prompts.
    """
    short = min(map(len, prompts), default=0)
    tokens = np.array([prompt[:short] for prompt in prompts]).reshape(len(prompts), short)
    same = (tokens == tokens[:1]).all(axis=0)
    if not same.all():
        return int(np.argmin(same))
    return max(0, short - 1) if len(set(map(len, prompts))) > 1 else 0


def shared_tokens(prompts: Sequence[Sequence[int]], most: int | None = None) -> int:
    """How many tokens at the beginning of prompts are to be read once for all of them: `most`, if
    they have so many in common, else a multiple of 8, as programs depend on it.

    >>> prompts = [[*range(20), 7], [*range(20), 8, 9]]
    >>> [shared_tokens(prompts, most) for most in (None, 19, 5, 30)]
    [16, 19, 0, 16]
    """
    count = common_tokens(prompts)
    if most is not None and most <= count:
        return most if most >= SMALLEST else 0
    return count // SMALLEST * SMALLEST


class Reading(NamedTuple):
    """What one call reads, U lines of h prompts, and the R rows that go on from them.

    A line is of one pair, so that its prompts share the pair's factors.
    """

    prompt: np.ndarray  # (U, h) int32; -1: nothing
    sign: np.ndarray  # (U, h) float32
    pair: np.ndarray  # (U,) int32
    source: np.ndarray  # (R,) int32: which of the U h prompts
    row: np.ndarray  # (R,) int32; -1: none


def largest_call(length: int, prompts: int, rows: int, most: int) -> int:
    """Tokens of the largest call that `readings` asks for while half of the rows or more are new.

    Args:
        length: tokens of every prompt, with padding.
        prompts: different ones.
        rows: that begin with them, the same number with each, two of every pair.
        most: tokens of a call, from which the number of lines is rounded up.
    """
    pairs = -(-rows // (2 * prompts))
    together = min(prompts, _in_slice(prompts, length, max(1, pairs)))
    shapes = [(length, rows), *((2 * length * n, pairs) for n in range(1, together + 1))]
    return max(line * _few(min(lines, -(-most // line))) for line, lines in shapes)


def _in_slice(prompts: int, longest: int, readings: float) -> int:
    """How many prompts are read together, each so often, that calls are neither few nor small."""
    return max(math.ceil(prompts / SLICES), math.ceil(LEAST / (longest * readings)))


def rounded(count: int) -> int:
    """The next of 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, ...

    >>> [rounded(n) for n in (1, 9, 41, 65, 1000)]
    [8, 16, 48, 80, 1024]
    """
    step = max(SMALLEST, (1 << (max(count, 1) - 1).bit_length()) // 8)
    return -(-count // step) * step


def room(prompt: int, max_tokens: int) -> int:
    """Tokens that a row has room for, whose prompt is padded to so many."""
    return -(-rounded(prompt + max_tokens) // 16) * 16


def readings(
    prompts: Prompts, jobs: Jobs, rows: np.ndarray, job: np.ndarray, shared: bool, most: int
) -> list[Reading]:
    """What to read for `rows` (n,) that begin with the jobs `job` (n,).

    Args:
        shared: Whether lines hold all that is new of their pair; else each prompt is a line of its
            own, with a copy of the factors.
        most: Tokens of one call, at most (but at least one line).
    """
    keys = np.column_stack([jobs.pair[job], jobs.sign[job], prompts.first[jobs.prompt[job]]])
    unique, source = np.unique(keys.astype(np.int32), axis=0, return_inverse=True)
    source = source.reshape(-1)
    longest = int(prompts.lengths[unique[:, 2]].max())
    found = []
    for lines in _slices(prompts, unique, longest, shared):
        width = max(len(line) for line in lines)
        copies = -(-len(rows) // len(unique))
        rest = rounded(max(int(prompts.lengths[unique[x, 2]].max()) for x in lines))
        tokens = width * copies * (len(prompts.beginning) + rest)
        calls = -(-len(lines) * tokens // max(most, tokens))
        each = _few(-(-len(lines) // calls))
        for start in range(0, len(lines), each):
            grid = np.full((each, width), -1, np.int32)
            for i, line in enumerate(lines[start : start + each]):
                grid[i, : len(line)] = line
            found.append(_reading(unique, grid, rows, source))
    return found


def _slices(
    prompts: Prompts, unique: np.ndarray, longest: int, shared: bool
) -> list[list[np.ndarray]]:
    """Lines, each the numbers of its readings, of prompts of about the same length."""
    length = prompts.lengths[unique[:, 2]]
    order = np.argsort(-length, kind="stable")
    if not shared:
        size = _few(_in_slice(len(order), longest, 1))
        cut = range(0, len(order), size)
        return [[order[i : i + 1] for i in range(j, min(j + size, len(order)))] for j in cut]
    asked = list(dict.fromkeys(unique[order, 2].tolist()))  # prompts, the longest first
    each_row = len(unique) / len(asked)  # readings of a prompt
    size = _in_slice(len(asked), longest, each_row)
    slices = []
    for start in range(0, len(asked), size):
        part = order[np.isin(unique[order, 2], asked[start : start + size])]
        lines = [part[unique[part, 0] == pair] for pair in np.unique(unique[part, 0])]
        slices.append(lines)
    return slices


def _reading(unique: np.ndarray, grid: np.ndarray, rows: np.ndarray, source: np.ndarray) -> Reading:
    there = grid >= 0
    at = np.full(len(unique), -1, np.int32)  # the place of each reading in the grid
    at[grid[there]] = np.flatnonzero(there)
    ours = at[source] >= 0
    count = max(int(ours.sum()), 1)
    count = grid.size if count <= grid.size else rounded(count)
    row, place = np.full(count, -1, np.int32), np.zeros(count, np.int32)
    row[: ours.sum()], place[: ours.sum()] = rows[ours], at[source[ours]]
    pick = lambda column: np.where(there, unique[grid, column], 0)
    return Reading(
        prompt=np.where(there, unique[grid, 2], -1).astype(np.int32),
        sign=pick(1).astype(np.float32),
        pair=np.maximum(pick(0).max(axis=1), 0).astype(np.int32),
        source=place,
        row=row,
    )


def _few(count: int) -> int:
    """`rounded`, and below 8 a power of two."""
    return rounded(count) if count > SMALLEST else 1 << (count - 1).bit_length()
