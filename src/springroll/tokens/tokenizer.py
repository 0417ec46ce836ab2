"""Text as tokens: what every tokenizer can do, and which one a folder holds.

The tokenizer.json of a Hugging Face folder, with what the other files say about its tokens.
"""

import importlib
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeGuard

from springroll import atomic
from springroll.atomic import JsonObject
from springroll.bounded import read_bytes
from springroll.errors import InputError, expect
from springroll.gguf import model_folder
from springroll.program import pip_install
from springroll.tokens.byte_tokenizer import TokenIds, byte_tokenizer, is_byte_tokenizer
from springroll.tokens.chat_template import (
    Messages,
    Render,
    chat_template,
    special_tokens,
    template_text,
)
from springroll.tokens.growth import check_growth
from springroll.tokens.world_tokenizer import FILE, world_tokenizer

_MOST = 100_000_000  # bytes of a tokenizer.json; that of the largest vocabulary has a third


class Encoding(Protocol):
    """What the package `tokenizers` makes of a text."""

    ids: TokenIds
    offsets: Sequence[tuple[int, int]]  # of each token, in characters of the text


class Loaded(Protocol):
    """What is used of a `tokenizers.Tokenizer`."""

    def encode(self, sequence: str, *, add_special_tokens: bool) -> Encoding: ...

    def encode_batch(
        self, input: list[str], *, add_special_tokens: bool = True
    ) -> list[Encoding]: ...

    def decode(self, ids: TokenIds, *, skip_special_tokens: bool) -> str: ...


@dataclass(frozen=True)
class HfTokenizer:
    """A tokenizer of the package `tokenizers`. Made by `hf_tokenizer`."""

    folder: Path
    loaded: Loaded
    vocab: int
    pad: int
    end: frozenset[int]
    template: Render | None

    @property
    def chats(self) -> bool:
        return self.template is not None

    def encode(self, text: str, special: bool = True) -> TokenIds:
        try:
            return self.loaded.encode(text, add_special_tokens=special).ids
        except BaseException as error:
            raise self._failure(error) from None

    def encode_all(self, texts: Sequence[str]) -> list[TokenIds]:
        return [encoding.ids for encoding in self.encodings(texts)]

    def encodings(self, texts: Sequence[str], special: bool = True) -> list[Encoding]:
        """Many texts in tokens, each with its place in its text."""
        try:
            return self.loaded.encode_batch(list(texts), add_special_tokens=special)
        except BaseException as error:
            raise self._failure(error) from None

    def decode(self, tokens: Sequence[int]) -> str:
        in_vocabulary = [int(token) for token in tokens if 0 <= token < self.vocab]
        try:
            return self.loaded.decode(in_vocabulary, skip_special_tokens=True)
        except BaseException as error:
            raise self._failure(error) from None

    def _failure(self, error: BaseException) -> BaseException:
        return _failure(f"the tokenizer of {self.folder} fails", error)

    def chat(self, messages: Messages, **variables: object) -> str:
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
        package = importlib.import_module("tokenizers")
    except ImportError:
        raise InputError(f"{path} needs the package 'tokenizers': {pip_install('hf')}") from None
    content = read_bytes(path, _MOST)
    tokens = special_tokens(folder)
    try:
        loaded = package.Tokenizer.from_buffer(content)
        loaded.no_padding()  # settings of training that some files still hold
        loaded.no_truncation()
        tokens_by_text = loaded.get_vocab(with_added_tokens=True)
        check_growth(loaded, tokens_by_text, str(path))
        vocab = max(tokens_by_text.values(), default=-1) + 1
        named, pad = (loaded.token_to_id(tokens.get(f"{x}_token", "")) for x in ("eos", "pad"))
    except BaseException as error:
        raise _failure(f"cannot read {path}", error) from None
    end = _end(folder, named)
    if pad is None:
        pad = _config(folder, "config.json").get("pad_token_id")
    return HfTokenizer(
        folder=folder,
        loaded=loaded,
        vocab=vocab,
        pad=pad if _is_token(pad) else min(end, default=0),
        end=end,
        template=chat_template(folder),
    )


def _end(folder: Path, named: int | None) -> frozenset[int]:
    tokens: list[object] = [named]
    for file in ("generation_config.json", "config.json"):
        stated = _config(folder, file).get("eos_token_id")
        tokens += stated if isinstance(stated, list) else [stated]
    return frozenset(filter(_is_token, tokens))


def _is_token(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 1 << 31


def _failure(trouble: str, error: BaseException) -> BaseException:
    """What the package `tokenizers` raises as an InputError: it may be a panic, no Exception."""
    ours = isinstance(error, KeyboardInterrupt | SystemExit | InputError)
    return error if ours else InputError(f"{trouble}: {error}")


def _config(folder: Path, file: str) -> JsonObject:
    path = folder / file
    return atomic.read_json(path) if path.exists() else {}


class Tokenizer(Protocol):
    """Text to tokens and back."""

    @property
    def vocab(self) -> int:
        """One more than the largest token; a model may have room for more."""
        ...

    @property
    def pad(self) -> int: ...

    @property
    def end(self) -> frozenset[int]:
        """The tokens after which a text is over."""
        ...

    def encode(self, text: str, special: bool = True) -> TokenIds:
        """The tokens of a text, with those that stand around every text the model has seen (most
        begin with one). `special=False` puts none."""
        ...

    def encode_all(self, texts: Sequence[str]) -> list[TokenIds]:
        """Many texts, on all cores where the tokenizer can."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special and unknown ones left out; what is no text is U+FFFD."""
        ...

    @property
    def chats(self) -> bool:
        """Whether `chat` has a template."""
        ...

    def chat(self, messages: Messages, **variables: object) -> str:
        """Messages {"role": ..., "content": ...} as the text that the model goes on from.

        Args:
            variables: of the template, such as `enable_thinking=False`.

        Raises:
            InputError: the folder has no chat template, or it refuses these messages.
        """
        ...


def open_tokenizer(folder: str | Path, vocab: int | None = None) -> Tokenizer:
    """The tokenizer of a checkpoint: of its folder, or beside a lone file of weights.

    That is its tokenizer.json (extra `hf`; the one of plain bytes needs no package, unless a chat
    template is beside it), the RWKV World vocabulary, in the folder or in the package `rwkv`, or
    for a model of 256 tokens that has neither, the bytes.

    Args:
        vocab: how many tokens the model has; by default what the folder's config.json says.

    Raises:
        InputError: the folder holds none, its file is damaged, a package is missing, or it has
            tokens that the model has not.
    """
    folder = model_folder(folder)
    lone = os.path.isfile(folder)
    folder = folder.parent if lone else folder
    if not os.path.isdir(folder):
        raise InputError(f"{folder} is no folder; give one with a config.json and a tokenizer")
    path = folder / "config.json"
    config = atomic.read_json(path) if path.exists() else {}
    size = config.get("vocab_size") if vocab is None else vocab
    # Of the models that are one file without a config.json all are RWKV.
    lone = lone or (not config and any(folder.glob("*.pth")))
    tokenizer = _open(folder, size, world=lone or "rwkv" in str(config.get("model_type")))
    if isinstance(size, int) and tokenizer.vocab > size:
        raise InputError(
            f"the tokenizer of {folder} has {tokenizer.vocab} tokens and the model only {size}; "
            "take the tokenizer that belongs to it"
        )
    return tokenizer


def prompt_tokens(
    tokenizer: Tokenizer, prompt: str | Messages, chat: bool = False, **variables: object
) -> TokenIds:
    """A prompt as a model reads it.

    Args:
        tokenizer: of the model.
        prompt: text, or messages. Where the last of them is the assistant's, the model goes on with
            what it says.
        chat: whether text is put into the chat template as a user's message; else it stands as it
            is. Messages always are.
        variables: of the template, such as `tools=[...]`.

    Raises:
        InputError: the tokenizer has no chat template, or it refuses the messages.
    """
    _check(tokenizer)
    if isinstance(prompt, str):
        if not chat:
            return tokenizer.encode(prompt)
        prompt = [{"role": "user", "content": prompt}]
    listed = isinstance(prompt, Sequence) and bool(prompt)
    told = listed and all(isinstance(each, Mapping) and "role" in each for each in prompt)
    expect(told, "prompt", prompt, "text, or a list of messages such as {'role': ..., ...}")
    text = _chat_text(tokenizer, prompt, **variables)
    # Templates for transformers spell out what a text begins with; that of the World models not.
    return tokenizer.encode(text, special=not isinstance(tokenizer, HfTokenizer))


def _chat_text(tokenizer: Tokenizer, messages: Messages, **variables: object) -> str:
    """Messages up to where the model goes on: after the template's words for its turn, or in the
    assistant's message that it has begun."""
    last = messages[-1]
    begun = last["content"].strip() if last["role"] == "assistant" else ""
    if not begun:
        return tokenizer.chat(messages, **variables)
    text = tokenizer.chat(messages, add_generation_prompt=False, **variables)
    start, whole = text.rfind(begun), last["content"].lstrip()
    if start < 0:
        raise InputError("the chat template changes the last message, which is to be continued")
    return text[: start + len(whole if text.startswith(whole, start) else begun)]


def check_stop(strings: Collection[str]) -> None:
    """Raise InputError if one of the strings that end a text is empty."""
    if "" in strings:
        raise InputError("a stop string is empty; every text would end before it begins")


def end_tokens(tokenizer: Tokenizer, stop: Iterable[str] = ()) -> frozenset[int]:
    """The tokens at which generation may end.

    Args:
        tokenizer: whose own end tokens these include.
        stop: strings; those that are one token are included. Longer ones are cut off later, from
            the text.
    """
    _check(tokenizer)
    texts = isinstance(stop, Collection) and all(isinstance(text, str) for text in stop)
    expect(texts, "stop", stop, "several texts")
    stops = [tokenizer.encode(text, special=False) for text in stop]
    return tokenizer.end | {tokens[0] for tokens in stops if len(tokens) == 1}


def _check(tokenizer: object) -> None:
    """Raise InputError for what is no tokenizer."""
    fits = hasattr(tokenizer, "end") and callable(getattr(tokenizer, "decode", None))
    expect(fits, "tokenizer", tokenizer, "a tokenizer, such as of open_tokenizer(folder)")


def _open(folder: Path, size: int | None, world: bool) -> Tokenizer:
    path = folder / "tokenizer.json"
    if path.exists():
        plain = is_byte_tokenizer(path) and template_text(folder) is None
        return byte_tokenizer() if plain else hf_tokenizer(folder)
    if (folder / FILE).exists():
        return world_tokenizer(folder)
    if size == 256:
        return byte_tokenizer()
    if world:
        return world_tokenizer(folder)
    raise InputError(
        f"{folder} holds neither tokenizer.json nor {FILE}, so its text cannot be read; "
        "copy one there"
    )
