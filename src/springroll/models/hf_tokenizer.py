"""The tokenizer.json of a Hugging Face folder, with what the other files say about its tokens."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from springroll import atomic
from springroll.errors import InputError
from springroll.models.chat_template import Render, chat_template, special_tokens


@dataclass(frozen=True)
class HfTokenizer:
    """A tokenizer of the package `tokenizers`. Made by `hf_tokenizer`."""

    folder: Path
    loaded: Any
    vocab: int
    pad: int
    end: frozenset[int]
    template: Render | None

    @property
    def chats(self) -> bool:
        return self.template is not None

    def encode(self, text: str, special: bool = True) -> list[int]:
        return self.loaded.encode(text, add_special_tokens=special).ids

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        return [found.ids for found in self.loaded.encode_batch(list(texts))]

    def decode(self, tokens: Sequence[int]) -> str:
        known = [int(token) for token in tokens if 0 <= token < self.vocab]
        return self.loaded.decode(known, skip_special_tokens=True)

    def chat(self, messages: Sequence[dict[str, str]], **variables: Any) -> str:
        if self.template is None:
            raise InputError(f"{self.folder} has no chat template; give plain prompts")
        return self.template(messages, **variables)


def hf_tokenizer(folder: str | Path) -> HfTokenizer:
    """The tokenizer in a folder: tokenizer.json, and where they are there, tokenizer_config.json,
    config.json, generation_config.json and chat_template.jinja.

    A text ends after any token that one of the files gives as its end.

    Raises:
        InputError: a package of the extra `hf` or the file is missing, or it cannot be read.
    """
    folder = Path(folder)
    path = folder / "tokenizer.json"
    if not path.exists():
        raise InputError(f"{folder} holds no tokenizer.json, so its text cannot be read")
    try:
        package: Any = importlib.import_module("tokenizers")
    except ImportError:
        raise InputError(
            f"{path} needs the package 'tokenizers': pip install 'springroll[hf]'"
        ) from None
    try:
        loaded = package.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises plain Exception
        raise InputError(f"cannot read {path}: {error}") from None
    loaded.no_padding()  # settings of training that some files still hold
    loaded.no_truncation()
    tokens = special_tokens(folder)
    end = _end(folder, loaded.token_to_id(tokens.get("eos_token", "")))
    pad = loaded.token_to_id(tokens.get("pad_token", ""))
    if pad is None:
        pad = _config(folder, "config.json").get("pad_token_id")
    return HfTokenizer(
        folder=folder,
        loaded=loaded,
        vocab=max(loaded.get_vocab(with_added_tokens=True).values(), default=-1) + 1,
        pad=pad if isinstance(pad, int) else min(end, default=0),
        end=end,
        template=chat_template(folder),
    )


def _end(folder: Path, named: int | None) -> frozenset[int]:
    found: list[Any] = [named]
    for file in ("generation_config.json", "config.json"):
        stated = _config(folder, file).get("eos_token_id")
        found += stated if isinstance(stated, list) else [stated]
    return frozenset(token for token in found if isinstance(token, int))


def _config(folder: Path, file: str) -> dict[str, Any]:
    path = folder / file
    return atomic.read_json(path) if path.exists() else {}
