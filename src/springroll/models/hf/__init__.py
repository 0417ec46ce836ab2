"""Hugging Face folders: configurations, weights and tokenizers, read and written."""

from springroll.models.hf.load import load_hf
from springroll.models.hf.save import save_hf

__all__ = [
    "load_hf",
    "save_hf",
]
