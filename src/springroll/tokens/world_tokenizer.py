r"""The RWKV World vocabulary: of a text's bytes always the longest token that begins there.

A line of its file is a number, a Python literal of text or bytes, and the length in bytes:

    33 ' ' 1
    258 b'\xe0\xa4' 2

Token 0 stands between texts and has no line. Source: https://github.com/BlinkDL/RWKV-LM, the file
rwkv_vocab_v20230424.txt, which the package `rwkv` carries too.
"""

import ast
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from springroll.bounded import read_text
from springroll.errors import InputError
from springroll.tokens.byte_tokenizer import TokenIds
from springroll.tokens.chat_template import Messages, Render, chat_template

FILE = "rwkv_vocab_v20230424.txt"

_MOST = 2_000_000  # bytes of a vocabulary; the published one has half
_LONGEST = 1000  # bytes of a token; the longest published one has 128
_LITERAL = re.compile(r"""b?(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""")  # one, of text or bytes

# A node of the trie: by byte the next node, and under -1 the token that ends here.
Trie = dict[int, Any]
_TOKEN = -1


@dataclass(frozen=True)
class WorldTokenizer:
    """Made by `world_tokenizer`."""

    words: dict[int, bytes]
    trie: Trie
    vocab: int
    template: Render | None = None
    pad: int = 0
    end: frozenset[int] = frozenset({0})
    chats: bool = True

    def encode(self, text: str, special: bool = True) -> TokenIds:
        """A 0, with which the World models saw every text begin, and the tokens."""
        content = text.encode(errors="replace")
        tokens, start = [0] * special, 0
        while start < len(content):
            token, start = _longest(self.trie, content, start)
            tokens.append(token)
        return tokens

    def encode_all(self, texts: Sequence[str]) -> list[TokenIds]:
        return [self.encode(text) for text in texts]

    def decode(self, tokens: Sequence[int]) -> str:
        content = b"".join(self.words.get(int(token), b"") for token in tokens)
        return content.decode(errors="replace")

    def chat(self, messages: Messages, **variables: object) -> str:
        """By the folder's template; without one as the World models were trained, `User: ...`,
        blank line, `Assistant:`, with single line ends within a message."""
        if self.template is not None:
            return self.template(messages, **variables)
        turns = [f"{m['role'].capitalize()}: {_one_block(m['content'])}" for m in messages]
        asked = variables.get("add_generation_prompt", True)
        return "\n\n".join([*turns, "Assistant:" if asked else ""])


def world_tokenizer(folder: str | Path) -> WorldTokenizer:
    """The World tokenizer, from the vocabulary in the folder or in the installed package `rwkv`.

    Raises:
        InputError: neither has it, or the file is damaged.
    """
    path = world_file(folder)
    if path is None:
        raise InputError(
            f"{folder} lacks the vocabulary {FILE}; copy it there, or: pip install rwkv"
        )
    words = read_vocabulary(path)
    return WorldTokenizer(words, _trie(words), max(words) + 1, chat_template(folder))


def world_file(folder: str | Path) -> Path | None:
    """Where the vocabulary is; the package is found without importing it (it imports torch)."""
    package = importlib.util.find_spec("rwkv")
    places = [folder, *(package.submodule_search_locations or [] if package else [])]
    return next((path for place in places if (path := Path(place) / FILE).is_file()), None)


def read_vocabulary(path: Path) -> dict[int, bytes]:
    """The bytes of every token.

    Raises:
        InputError: the file cannot be read, a line is damaged, or a byte has no token.
    """
    lines = read_text(path, _MOST).removesuffix("\n").split("\n")
    words: dict[int, bytes] = {}
    for number, line in enumerate(lines, 1):
        try:
            token, _, rest = line.partition(" ")
            literal, _, length = rest.rpartition(" ")
            if _LITERAL.fullmatch(literal) is None:
                raise ValueError
            word = ast.literal_eval(literal)
            word = word.encode() if isinstance(word, str) else word
            if len(word) != int(length) or len(word) > _LONGEST or not 0 < int(token) < 1 << 31:
                raise ValueError
            words[int(token)] = word
        except (ValueError, SyntaxError, TypeError):
            raise InputError(f"line {number} of {path} is damaged: {line[:60]!r}") from None
    lost = {bytes([byte]) for byte in range(256)} - set(words.values())
    if lost:
        raise InputError(f"{path} has no token for the byte {min(lost)!r}; download it again")
    return words


def _trie(words: dict[int, bytes]) -> Trie:
    root: Trie = {}
    for token, word in words.items():
        node = root
        for byte in word:
            node = node.setdefault(byte, {})
        node[_TOKEN] = token
    return root


def _longest(trie: Trie, content: bytes, start: int) -> tuple[int, int]:
    """(the longest token that begins at `start`, where it ends)."""
    token, end, node = -1, start, trie
    for place in range(start, len(content)):
        node = node.get(content[place])
        if node is None:
            break
        if _TOKEN in node:
            token, end = node[_TOKEN], place + 1
    return token, end  # every byte is a token, so one was found


def _one_block(content: str) -> str:
    return "\n".join(line for line in content.strip().splitlines() if line.strip())
