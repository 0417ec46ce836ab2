"""GGUF files, one-file models of llama.cpp, opened as Hugging Face folders. Imports no JAX."""

from springroll.gguf.folder import model_folder
from springroll.gguf.header import Header, read_header
from springroll.gguf.tensors import Packed, packed

__all__ = ["Header", "Packed", "model_folder", "packed", "read_header"]
