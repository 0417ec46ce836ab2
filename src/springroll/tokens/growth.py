"""How much longer a tokenizer.json can make a text: a few lines of it could double a text 64 times.

The package `tokenizers` does what the file says, in memory without a limit. So the file's steps are
looked at before any text goes through them.
"""

import base64
import json
import math
from collections.abc import Iterable
from typing import Any

from springroll.errors import InputError

MOST = 1000  # times; published tokenizers stay below 100
LONGEST = 10_000  # characters of a token; the longest published ones are a hundred spaces or so


def check_growth(loaded: Any, vocabulary: Iterable[str], where: str) -> None:
    """Refuse a tokenizer that makes much of little.

    Args:
        loaded: a `tokenizers.Tokenizer`.
        vocabulary: its tokens as text.
        where: it comes from, for messages.

    Raises:
        InputError: text or tokens could become more than `MOST` times as long, or a token has more
            than `LONGEST` characters.
    """
    longest = max(map(len, vocabulary), default=0)
    if longest > LONGEST:
        raise InputError(
            f"{where} has a token of {longest:,} characters; at most {LONGEST:,} are read"
        )
    steps = {name: _described(getattr(loaded, name)) for name in ("normalizer", "pre_tokenizer")}
    into = math.prod(map(growth, steps.values())) * _copies(_described(loaded.post_processor))
    out_of = growth(_described(loaded.decoder))
    if max(into, out_of) > MOST:
        raise InputError(
            f"{where} can make a text more than {MOST:,} times as long; take the tokenizer.json of "
            "the model's authors"
        )


def growth(step: Any) -> float:
    """How many characters one can become, at most.

    >>> double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    >>> growth({"type": "Sequence", "normalizers": [double, double, {"type": "NFC"}]})
    4.0

    Args:
        step: of a tokenizer.json, of any kind.
    """
    if not isinstance(step, dict):
        return 1.0
    for inner in ("normalizers", "pretokenizers", "decoders"):
        if isinstance(step.get(inner), list):
            return math.prod(map(growth, step[inner]))
    if step.get("type") == "Prepend":
        return 1.0 + len(step["prepend"])
    if step.get("type") == "Replace":
        text = step["pattern"].get("String")
        # A regular expression can match between any two characters.
        return max(1.0, len(step["content"]) / len(text)) if text else 1.0 + len(step["content"])
    if step.get("type") == "Precompiled":
        return float(_longest_entry(step["precompiled_charsmap"] or ""))
    return 1.0


def _copies(step: Any) -> int:
    """How often a text stands among the tokens."""
    if not isinstance(step, dict):
        return 1
    if step.get("type") == "Sequence":
        return math.prod(map(_copies, step["processors"]))
    pieces = step.get("single") if step.get("type") == "TemplateProcessing" else None
    return max(1, len(pieces)) if isinstance(pieces, list) else 1


def _longest_entry(encoded: str) -> int:
    """Bytes of the longest text in a map of characters: texts, each before a zero, after a trie."""
    content = base64.b64decode(encoded)
    start = 4 + int.from_bytes(content[:4], "little")
    return max(map(len, content[start:].split(b"\0")), default=1) or 1


def _described(step: Any) -> Any:
    """A step of a tokenizer as it stands in the file."""
    return None if step is None else json.loads(step.__getstate__())
