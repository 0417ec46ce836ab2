"""Tokenizers: text to tokens and back. Nothing here imports JAX."""

from springroll.tokens.byte_tokenizer import TokenIds, byte_tokenizer, write_byte_tokenizer
from springroll.tokens.chat_template import Messages
from springroll.tokens.tokenizer import Tokenizer, end_tokens, open_tokenizer, prompt_tokens

__all__ = [
    "Messages",
    "TokenIds",
    "Tokenizer",
    "byte_tokenizer",
    "end_tokens",
    "open_tokenizer",
    "prompt_tokens",
    "write_byte_tokenizer",
]
