"""Text as tokens: what every tokenizer can do, and which one a folder holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from springroll import atomic
from springroll.errors import InputError


class Tokenizer(Protocol):
    """Text to tokens and back.

    `encode` adds the special tokens that the tokenizer itself puts around a text (a Llama begins
    every text with one); with `special=False` it adds none, as is right for text from `chat`, which
    spells them out.
    """

    @property
    def vocab(self) -> int:
        """One more than the largest token."""
        ...

    @property
    def pad(self) -> int: ...

    @property
    def end(self) -> frozenset[int]:
        """The tokens after which a text is over."""
        ...

    def encode(self, text: str, special: bool = True) -> list[int]: ...

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens, special ones left out; what is no text becomes U+FFFD."""
        ...

    def chat(self, messages: list[dict[str, str]]) -> str:
        """Messages {"role": ..., "content": ...} as the text that the model answers.

        Raises:
            InputError: the folder has no chat template, or it refuses these messages.
        """
        ...


@dataclass(frozen=True)
class ByteTokenizer:
    """The bytes of UTF-8; 0 ends a text. Made by `byte_tokenizer`."""

    vocab: int = 256
    pad: int = 0
    end: frozenset[int] = frozenset({0})

    def encode(self, text: str, special: bool = True) -> list[int]:
        """The bytes; a 0 within a text is left out, as it would end it."""
        return [byte for byte in text.encode(errors="replace") if byte]

    def decode(self, tokens: list[int]) -> str:
        return bytes(t for t in tokens if 0 < t < 256).decode(errors="replace")

    def chat(self, messages: list[dict[str, str]]) -> str:
        raise InputError("a model of plain bytes has no chat template; give plain prompts")


def byte_tokenizer() -> Tokenizer:
    """256 tokens, the bytes; token 0 ends a text and is the padding.

    >>> byte_tokenizer().encode("1+1=")
    [49, 43, 49, 61]
    """
    return ByteTokenizer()


def open_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint's folder.

    Raises:
        InputError: the folder holds none, its file is damaged, or a package is missing.
    """
    folder = Path(folder)
    if atomic.read_json(folder / "config.json").get("vocab_size") == 256:
        return byte_tokenizer()
    raise InputError(f"{folder} holds no tokenizer.json")
