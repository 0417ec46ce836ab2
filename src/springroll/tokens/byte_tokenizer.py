"""Plain bytes as tokens, and the same as a `tokenizer.json` that other programs load."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from springroll import atomic
from springroll.atomic import JsonObject, write_json
from springroll.errors import InputError, as_path
from springroll.tokens.chat_template import Messages

TokenIds: TypeAlias = list[int]
"""A text in tokens."""

END = "<|end|>"  # how the byte 0 is written; any other name of one character could stand in a text


@dataclass(frozen=True)
class ByteTokenizer:
    """The bytes of UTF-8; 0 stands before and after every text. Made by `byte_tokenizer`."""

    vocab: int = 256
    pad: int = 0
    end: frozenset[int] = frozenset({0})
    chats: bool = False

    def encode(self, text: str, special: bool = True) -> TokenIds:
        """A 0 and the bytes; a 0 within a text is left out, as it would end it."""
        return [0] * special + [byte for byte in text.encode(errors="replace") if byte]

    def encode_all(self, texts: Sequence[str]) -> list[TokenIds]:
        return [self.encode(text) for text in texts]

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(int(t) for t in tokens if 0 < t < 256).decode(errors="replace")

    def chat(self, messages: Messages, **variables: object) -> str:
        raise InputError("a model of plain bytes has no chat template; give plain prompts")


def byte_tokenizer() -> ByteTokenizer:
    """256 tokens, the bytes; token 0 stands before and after every text, and is the padding.

    >>> byte_tokenizer().encode("1+1=")
    [0, 49, 43, 49, 61]
    """
    return ByteTokenizer()


def write_byte_tokenizer(folder: str | Path) -> None:
    """Complete the folder of a model of bytes: tokenizer.json and tokenizer_config.json.

    The packages `tokenizers` and `transformers` read them as 256 tokens, each of one byte: a
    byte-level BPE without merges that begins every text with token 0. Only the text `<|end|>` is
    token 0 there, and seven bytes here.

    Args:
        folder: of the model.

    Raises:
        InputError: what is no path.
    """
    folder = as_path(folder)
    write_json(folder / "tokenizer.json", _tokenizer_json())
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": END,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 10**30,  # what transformers writes where there is no limit
    }
    write_json(folder / "tokenizer_config.json", config)


def is_byte_tokenizer(path: Path) -> bool:
    """Whether a tokenizer.json is the one that `write_byte_tokenizer` writes."""
    written = _tokenizer_json()
    if path.stat().st_size > 100_000:  # most are megabytes and need not be parsed for this
        return False
    try:
        parsed = atomic.read_json(path)
    except InputError:
        return False
    return all(parsed.get(part) == written[part] for part in ("model", "post_processor"))


def _tokenizer_json() -> JsonObject:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    byte_level["use_regex"] = False
    begin = {"SpecialToken": {"id": END, "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    end = {"id": 0, "content": END, "single_word": False, "lstrip": False, "rstrip": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end | {"normalized": False, "special": True}],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, text],
            "pair": [begin, text, begin, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {END: {"id": END, "ids": [0], "tokens": [END]}},
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {END: 0} | {name: byte for byte, name in enumerate(_names()) if byte},
            "merges": [],
        },
    }


def _names() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary.

    Bytes that are visible characters of Latin-1 stand for themselves, the others, in order, are the
    characters from U+0100. Source: the GPT-2 vocabulary.
    """
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte if byte in visible else 256 + hidden.index(byte)) for byte in range(256)]
