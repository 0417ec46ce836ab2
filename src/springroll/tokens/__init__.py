"""Tokenizers: text to tokens and back. Nothing here imports JAX."""

from springroll.tokens.tokenizer import Tokenizer, open_tokenizer

__all__ = [
    "Tokenizer",
    "open_tokenizer",
]
