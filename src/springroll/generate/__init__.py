"""Writing text with a model, or with every member of a population at once."""

from springroll.generate.generator import Generated, Generator

__all__ = [
    "Generated",
    "Generator",
]
