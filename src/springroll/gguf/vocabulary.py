"""The vocabulary of a GGUF file as the `tokenizer.json` of a Hugging Face folder.

A file holds the tokens, their kinds and the merges of a byte-level BPE, and instead of the rule by
which a text is cut into words first, its name.
Source: llama-vocab.cpp of https://github.com/ggml-org/llama.cpp, and the tokenizer.json of the
models whose rules these are.
"""

from collections.abc import Sequence
from typing import Any, TypeGuard

from springroll.atomic import JsonObject
from springroll.errors import InputError, brief
from springroll.gguf.header import Header

_CONTROL, _USER_DEFINED = 3, 4  # kinds of tokens that stand in a text as they are

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD, _REST = r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*",
)
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_MARKS_AND_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_LLAMA3 = f"{_CONTRACTIONS}|{_WORD}|" + r"\p{N}{1,3}" + f"|{_MARKS}|{_REST}"
_QWEN2 = f"{_CONTRACTIONS}|{_WORD}|" + r"\p{N}" + f"|{_MARKS}|{_REST}"
_TEKKEN = "|".join((*_CASED, r"\p{N}", _MARKS_AND_SLASHES, _REST))
_GPT4O = "|".join(
    (*(f"{each}{_CONTRACTIONS}?" for each in _CASED), r"\p{N}{1,3}", _MARKS_AND_SLASHES, _REST)
)

_DIGITS = {"type": "Digits", "individual_digits": True}


def _byte_level(use_regex: bool) -> JsonObject:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _split(pattern: str) -> list[JsonObject]:
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return [cut, _byte_level(False)]


# The rules by name: how a text is cut. GPT-2's is built into the step ByteLevel.
CUTS: dict[str, list[JsonObject]] = {
    "gpt-2": [_byte_level(True)],
    "olmo": [_byte_level(True)],
    "smollm": [_DIGITS, _byte_level(True)],
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "smaug-bpe"), _split(_LLAMA3)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _split(_QWEN2)),
    "tekken": _split(_TEKKEN),
    "gpt-4o": _split(_GPT4O),
}
_WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "tekken")  # a word that is a token is never cut
_BEGINS = ("llama-bpe", "llama3", "llama-v3", "tekken")  # a text has a first token, unless said
_COMPOSED = ("qwen2", "deepseek-r1-qwen")  # Unicode is composed (NFC) first


def tokenizer_files(header: Header) -> dict[str, JsonObject]:
    """tokenizer.json, tokenizer_config.json and generation_config.json, by name.

    Empty where the file holds no vocabulary.

    Raises:
        InputError: a kind of vocabulary or a rule of cutting that is not known, or tokens, kinds
            and merges that do not fit each other.
    """
    said = lambda key: header.metadata.get(f"tokenizer.ggml.{key}")
    model, rule = said("model"), said("pre")
    if model is None:
        return {}
    if model != "gpt2":
        raise InputError(
            f"{header.path}: the vocabulary is of the kind {brief(model)} (tokenizer.ggml.model); "
            "only gpt2, a byte-level BPE, is supported"
        )
    if not isinstance(rule, str) or rule not in CUTS:
        raise InputError(
            f"{header.path}: its text is cut by the rule {brief(rule)} (tokenizer.ggml.pre); known "
            f"are {', '.join(CUTS)}"
        )
    tokens = _texts(header, "tokens")
    merges = _texts(header, "merges")
    if len(set(tokens)) < len(tokens) or not tokens:
        raise InputError(f"{header.path}: its vocabulary is empty, or has a token twice")
    kinds = header.items("tokenizer.ggml.token_type") or [1] * len(tokens)
    if len(kinds) != len(tokens):
        raise InputError(f"{header.path}: {len(tokens)} tokens have {len(kinds)} kinds")
    named = _named(header, tokens)
    begins = said("add_bos_token")
    begins = rule in _BEGINS if begins is None else begins
    first = named.get("bos_token") if begins is True else None
    ends = named.get("eos_token") if said("add_eos_token") is True else None
    written = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(tokens, kinds),
        "normalizer": {"type": "NFC"} if rule in _COMPOSED else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": CUTS[rule]},
        "post_processor": _around(tokens, first, ends),
        "decoder": _byte_level(True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": rule in _WHOLE_WORDS,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": merges,
        },
    }
    return {
        "tokenizer.json": written,
        "tokenizer_config.json": _config(header, named),
        "generation_config.json": _generation(header, len(tokens)),
    }


def _texts(header: Header, key: str) -> list[str]:
    found = header.items(f"tokenizer.ggml.{key}")
    if found is None or not all(isinstance(text, str) for text in found):
        raise InputError(f"{header.path}: tokenizer.ggml.{key} is missing, or no list of texts")
    return found


def _named(header: Header, tokens: Sequence[str]) -> dict[str, str]:
    """The texts of the tokens with a meaning, as tokenizer_config.json names them."""
    names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    numbers = {
        ours: header.metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        for theirs, ours in names.items()
    }
    return {f"{name}_token": tokens[n] for name, n in numbers.items() if _is_token(n, len(tokens))}


def _is_token(value: object, count: int) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < count


def _added(tokens: Sequence[str], kinds: Sequence[Any]) -> list[JsonObject]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [
        {"id": number, "content": token, **flags, "special": kind == _CONTROL}
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (_CONTROL, _USER_DEFINED) and token
    ]


def _around(tokens: list[str], first: str | None, last: str | None) -> JsonObject | None:
    """What stands around every text."""
    if first is None and last is None:
        return None
    begin, end = (
        [] if t is None else [{"SpecialToken": {"id": t, "type_id": 0}}] for t in (first, last)
    )
    text = lambda name: {"Sequence": {"id": name, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [*begin, text("A"), *end],
        "pair": [*begin, text("A"), *end, *begin, text("B"), *end],
        "special_tokens": {
            t: {"id": t, "ids": [tokens.index(t)], "tokens": [t]} for t in (first, last) if t
        },
    }


def _config(header: Header, named: dict[str, str]) -> JsonObject:
    config: JsonObject = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    config["clean_up_tokenization_spaces"] = False
    template = header.metadata.get("tokenizer.chat_template")
    return config | ({"chat_template": template} if isinstance(template, str) else {})


def _generation(header: Header, count: int) -> JsonObject:
    """The tokens at which a text ends: of a text, and of a turn of a conversation."""
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    ends = [header.metadata.get(f"tokenizer.ggml.{key}") for key in keys]
    return {"eos_token_id": sorted({end for end in ends if _is_token(end, count)})}
