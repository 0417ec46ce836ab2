"""A text in tokens by the parts that it is made of: what the model reads, and what it is to say.

The chat template says where an answer begins and ends. The conversation up to an answer, with what
the template puts before the assistant speaks, is what the model reads when it is to answer; so the
answer begins where the text of the whole conversation goes on from there, and ends where the
conversation up to and with the answer does. Templates that write earlier turns otherwise than the
last one (Qwen3 leaves out what was thought) are followed: the text is that of the whole
conversation, and where it does not say where an answer ends the first token that ends a turn does.
"""

import itertools
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple

from springroll.errors import InputError
from springroll.tokens.byte_tokenizer import TokenIds
from springroll.tokens.chat_template import Messages
from springroll.tokens.tokenizer import HfTokenizer, Tokenizer


class Part(NamedTuple):
    """A piece of a text."""

    text: str
    learnt: bool
    open: bool = False  # it may hold more than what is learnt, which its first end token closes


class Marked(NamedTuple):
    """A text in tokens, and which of them are learnt."""

    tokens: TokenIds
    learnt: list[bool]


def chat_parts(
    tokenizer: Tokenizer, messages: Messages, answers: Sequence[int], **variables: Any
) -> list[Part]:
    """A conversation as its chat template writes it, cut where answers begin and end.

    Args:
        tokenizer: of the model.
        messages: the conversation.
        answers: numbers of the assistant's messages that are learnt, ascending, none the first.
        variables: of the template, such as `tools=[...]`.

    Raises:
        InputError: the tokenizer has no template, it refuses the messages, or what it writes does
            not tell where an answer begins.
    """
    say = lambda said, ask: tokenizer.chat(said, add_generation_prompt=ask, **variables)
    whole = say(messages, False)
    starts = [_begin(say, whole, messages[:i]) for i in answers]
    parts, at = [], 0
    for i, start, following in zip(answers, starts, [*starts[1:], len(whole)], strict=True):
        last = i + 1 == len(messages)
        until = whole if last else say(messages[: i + 1], False)
        told = whole.startswith(until) and start < len(until) <= following
        end = len(until) if told else following
        parts += [Part(whole[at:start], False), Part(whole[start:end], True, open=not told)]
        at = end
    return [*parts, Part(whole[at:], False)]


def _begin(say: Any, whole: str, before: Messages) -> int:
    """Where the answer to some messages begins in the text of the whole conversation."""
    asked = say(before, True)
    if whole.startswith(asked):
        return len(asked)
    # It puts more there than this answer begins with, such as the beginning of a thought.
    pairs = enumerate(zip(whole, asked, strict=False))
    begin = next((i for i, (a, b) in pairs if a != b), min(len(whole), len(asked)))
    if begin < len(say(before, False)):
        raise InputError("the chat template writes what was said before an answer in another way")
    return begin


def marked(tokenizer: Tokenizer, texts: Sequence[Sequence[Part]], special: bool) -> list[Marked]:
    """Texts in tokens; of an answer what comes after its first end token is not learnt.

    A token that two parts share is of the later one.

    Args:
        tokenizer: of the model.
        texts: the parts of each.
        special: whether the tokens that stand around every text are put there (see `encode`).

    Raises:
        InputError: the tokenizer fails; an open part holds no token that ends a turn.
    """
    if isinstance(tokenizer, HfTokenizer):
        encoded = _split(tokenizer, texts, special)
    else:
        encoded = [
            [tokenizer.encode(part.text, special and i == 0) for i, part in enumerate(parts)]
            for parts in texts
        ]
    return [_marked(tokenizer, *pair) for pair in zip(texts, encoded, strict=True)]


def _split(
    tokenizer: HfTokenizer, texts: Sequence[Sequence[Part]], special: bool
) -> list[list[TokenIds]]:
    """The tokens of every part, of texts that are encoded whole."""
    found = []
    whole = ["".join(part.text for part in parts) for parts in texts]
    for parts, encoding in zip(texts, tokenizer.encodings(whole, special), strict=True):
        ends = list(itertools.accumulate(len(part.text) for part in parts))
        pieces: list[TokenIds] = [[] for _ in parts]
        at = 0  # special tokens around the text have no place in it
        for token, (_, end) in zip(encoding.ids, encoding.offsets, strict=True):
            at = max(at, min(bisect_left(ends, end), len(parts) - 1))
            pieces[at].append(token)
        found.append(pieces)
    return found


def _marked(tokenizer: Tokenizer, parts: Sequence[Part], pieces: Sequence[TokenIds]) -> Marked:
    tokens: TokenIds = []
    learnt: list[bool] = []
    for part, piece in zip(parts, pieces, strict=True):
        end = next((i + 1 for i, token in enumerate(piece) if token in tokenizer.end), None)
        if part.open and end is None:
            raise InputError("no token that ends a turn tells where an answer ends")
        count = len(piece) if end is None else end
        tokens += piece
        learnt += [part.learnt and i < count for i in range(len(piece))]
    return Marked(tokens, learnt)
