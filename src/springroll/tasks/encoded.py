"""Examples in the tokens of a model, and rows of them as batches: answers are learnt, no more.

An example of n tokens takes n - 1 places of a row: each token but the last is read, and what
follows it is the target where it belongs to an answer. What comes after the last answer is cut off.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple, TypeAlias

import numpy as np

from springroll.errors import InputError
from springroll.memory import check_fits
from springroll.tasks.examples import Example
from springroll.tasks.packing import packed_rows
from springroll.tasks.records import shuffled
from springroll.tokens.parts import Marked, Part, chat_parts, marked
from springroll.tokens.tokenizer import HfTokenizer, Tokenizer

TOGETHER = 1000  # examples that are encoded at once
OFTEN = 5.0  # seconds between two lines of progress
NOT_LEARNT = -1
REFUSED = "that the chat template does not take"
IN_VAIN = 20  # chats that a template refuses, each of which may take it seconds

Batches: TypeAlias = Callable[[int], "Rows"]


class Rows(NamedTuple):
    """Packed rows on the host; the fields of `models.packed.Packed`."""

    tokens: np.ndarray  # (rows, T) int32
    targets: np.ndarray  # (rows, T) int32
    segments: np.ndarray  # (rows, T) int32: 1, 2, ... and 0 where nothing stands
    counted: np.ndarray  # (rows,) float32


@dataclass
class LeftOut:
    """Examples that cannot be learnt from, by the reason, and the first of each."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    taken: int = 0  # chats that the template wrote

    def add(self, why: str, line: str) -> None:
        self.counts[why] = self.counts.get(why, 0) + 1
        self.first.setdefault(why, line)

    @property
    def line(self) -> str:
        """Such as "2 without an answer (line 3 of x.jsonl)"; empty where all are used."""
        return "; ".join(f"{n:,} {why} ({self.first[why]})" for why, n in self.counts.items())


@dataclass(frozen=True)
class Encoded:
    """Examples in tokens, one after the other; a long text is several pieces."""

    tokens: np.ndarray  # (all,) int32
    learnt: np.ndarray  # (all,) bool; of the first token of an example it says nothing
    starts: np.ndarray  # (pieces + 1,) int64
    source: np.ndarray  # (pieces,) int64: the number of the example
    left_out: LeftOut

    @property
    def places(self) -> np.ndarray:
        """Of every piece the places that it takes in a row."""
        return np.diff(self.starts) - 1

    def pieces(self, examples: Sequence[int]) -> list[int]:
        """The numbers of the pieces of some examples, ascending."""
        return np.isin(self.source, examples).nonzero()[0].tolist()

    def answers(self, pieces: Sequence[int]) -> int:
        """Tokens of these pieces that are learnt."""
        ends = np.concatenate([[0], np.cumsum(self.learnt)])
        first, last = self.starts[:-1][pieces] + 1, self.starts[1:][pieces]
        return int((ends[last] - ends[first]).sum())

    def rows(self, chosen: Sequence[Sequence[int]], room: int) -> Rows:
        """Rows of so many tokens with these pieces each."""
        tokens, segments = np.zeros((2, len(chosen), room), np.int32)
        targets = np.full((len(chosen), room), NOT_LEARNT, np.int32)
        for row, pieces in enumerate(chosen):
            at = 0
            for number, piece in enumerate(pieces, 1):
                start, end = self.starts[piece], self.starts[piece + 1]
                here = slice(at, at + end - start - 1)
                tokens[row, here] = self.tokens[start : end - 1]
                follows, learnt = self.tokens[start + 1 : end], self.learnt[start + 1 : end]
                targets[row, here] = np.where(learnt, follows, NOT_LEARNT)
                segments[row, here] = number
                at = here.stop
        mean = np.float32((targets >= 0).sum() / len(chosen))
        return Rows(tokens, targets, segments, np.full(len(chosen), mean, np.float32))


def encoded(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    room: int,
    note: Callable[[str], None] = lambda line: None,
) -> Encoded:
    """Examples in tokens; those that cannot be learnt from are counted by the reason.

    That is an example without an answer, one that takes more than `room` places, and one that the
    chat template refuses. A text without a prompt is cut into as many examples as it needs.

    Args:
        examples: see `read_examples`.
        tokenizer: of the model.
        room: tokens of a row.
        note: is told now and then how many are done.

    Raises:
        InputError: nothing is left, the template takes none of the first chats, or memory does not
            hold the tokens.
    """
    left_out = LeftOut()
    pieces: list[tuple[int, np.ndarray, np.ndarray]] = []
    longest, size = 0, 0
    told = time.monotonic()
    waiting, done = iter(enumerate(examples)), 0
    while some := list(islice(waiting, TOGETHER)):
        for number, of in _marked(some, tokenizer, left_out):
            example = examples[number]
            found = _learnable(of)
            places = len(found[0]) - 1
            whole = example.messages is not None or example.prompt
            if not found[1][1:].any():
                left_out.add("without an answer", example.where)
            elif whole and places > room:
                longest = max(longest, places)
                left_out.add(f"longer than {room:,} tokens", f"{example.where} has {places:,}")
            else:
                pieces += [(number, *piece) for piece in _cut(*found, room)]
                size += 5 * len(found[0])
        check_fits(2 * size, "what is left of the records, in tokens")
        done += len(some)
        if time.monotonic() - told > OFTEN:
            told = time.monotonic()
            note(f"{done:,} of {len(examples):,} records are in tokens")
    if not pieces:
        advice = f"; --sequence {longest} holds the longest" if longest else ""
        raise InputError(f"no record can be learnt from: {left_out.line}{advice}")
    pieces.sort(key=lambda piece: piece[0])  # chats and texts of a batch come one after the other
    source, tokens, learnt = zip(*pieces, strict=True)
    starts = np.cumsum([0, *map(len, tokens)], dtype=np.int64)
    of = np.concatenate(tokens), np.concatenate(learnt), starts, np.array(source, np.int64)
    return Encoded(*of, left_out)


def _marked(
    examples: Sequence[tuple[int, Example]], tokenizer: Tokenizer, left_out: LeftOut
) -> Iterator[tuple[int, Marked]]:
    """Of each, by its number, its tokens; those that a template refuses are left out."""
    chats: list[Told] = []
    texts: list[Told] = []
    for number, each in examples:
        if each.messages is None:
            parts = [Part(each.prompt, False), Part(each.answer, True)]
            texts.append(Told(number, each.where, parts))
        elif not each.answers:
            left_out.add("without an answer", each.where)
        else:
            tools = {"tools": each.tools} if each.tools else {}
            try:
                parts = chat_parts(tokenizer, each.messages, each.answers, **tools)
            except InputError as error:
                left_out.add(REFUSED, f"{each.where}: {error}")
                if not left_out.taken and left_out.counts[REFUSED] == IN_VAIN:
                    raise InputError(
                        f"none of the first {IN_VAIN} chats can be used: {error}"
                    ) from None
            else:
                left_out.taken += 1
                chats.append(Told(number, each.where, parts))
    yield from _each(chats, tokenizer, not isinstance(tokenizer, HfTokenizer), left_out)
    for number, of in _each(texts, tokenizer, True, left_out):  # see `prompt_tokens`
        yield number, _ended(tokenizer, of) if any(of.learnt) else of


class Told(NamedTuple):
    """An example as text."""

    number: int
    where: str
    parts: list[Part]


def _each(
    texts: Sequence[Told], tokenizer: Tokenizer, special: bool, left_out: LeftOut
) -> Iterator[tuple[int, Marked]]:
    """Texts in tokens, all at once; where one cannot be told apart, one by one."""
    try:
        together = marked(tokenizer, [each.parts for each in texts], special)
        yield from zip([each.number for each in texts], together, strict=True)
    except InputError as error:
        if len(texts) == 1:
            left_out.add("that cannot be put in tokens", f"{texts[0].where}: {error}")
            return
        for one in texts:
            yield from _each([one], tokenizer, special, left_out)


def _ended(tokenizer: Tokenizer, of: Marked) -> Marked:
    """The same with a token that ends the text, where the tokenizer has not put one."""
    if not tokenizer.end or (of.tokens and of.tokens[-1] in tokenizer.end):
        return of
    return Marked([*of.tokens, min(tokenizer.end)], [*of.learnt, True])


def _learnable(of: Marked) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and what is learnt, as arrays, up to the last answer."""
    learnt = np.array(of.learnt, bool)
    end = int(learnt.nonzero()[0][-1]) + 1 if learnt.any() else 1
    return np.array(of.tokens[:end], np.int32), learnt[:end]


def _cut(
    tokens: np.ndarray, learnt: np.ndarray, room: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Examples of at most `room` places; the first token of each was the last of that before."""
    for start in range(0, len(tokens) - 1, room):
        here = slice(start, start + room + 1)
        yield tokens[here], learnt[here]


def batches(of: Encoded, rows: list[list[int]], size: int, room: int, seed: int) -> Batches:
    """The batch of a step, counted from 0: a pure function of its number.

    Every epoch takes all rows, in another order.

    Args:
        of: the examples.
        rows: the pieces of each row, see `rows_of`.
        size: rows of a batch.
        room: tokens of a row.
        seed: of the orders.

    Raises:
        InputError: there are fewer rows than a batch takes.
    """
    if len(rows) < size:
        raise InputError(
            f"the training records fill {len(rows):,} rows of {room:,} tokens, and a step takes "
            f"{size:,}; lower --batch, --accumulate or --sequence, or give more records"
        )
    at = shuffled(rows, seed)
    return lambda step: of.rows([at(step * size + i) for i in range(size)], room)


def rows_of(of: Encoded, pieces: Sequence[int], room: int, packing: bool) -> list[list[int]]:
    """These pieces in rows of so many tokens, several to a row with `packing`."""
    if not packing:
        return [[piece] for piece in pieces]
    rows = packed_rows(of.places[pieces].tolist(), room)
    return [[pieces[i] for i in row] for row in rows]


def sample_of(
    of: Encoded, pieces: Sequence[int], count: int, room: int, packing: bool, together: int
) -> Rows:
    """About `count` rows of these pieces, always the same, and empty ones up to a multiple of
    `together`."""
    order = shuffled(pieces, 0)
    chosen = [order(i) for i in range(len(pieces))]
    if packing:
        fits = np.cumsum(of.places[chosen]) <= count * room
        chosen = chosen[: max(1, int(fits.sum()))]
    rows = rows_of(of, chosen if packing else chosen[:count], room, packing)
    return of.rows([*rows, *[[]] * (-len(rows) % together)], room)
