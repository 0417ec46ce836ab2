"""What a checkpoint and a parameter tree must know of each other, for any kind of model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from springroll.models.decoder_config import Shapes

Config: TypeAlias = Any  # DecoderConfig or RWKV7Config: has `layers`, and equality


class Stored(NamedTuple):
    """One tensor of a checkpoint, and of which leaf of the parameter tree it is which part."""

    place: tuple[int, ...]  # into the leaf's stacks
    name: str
    shape: tuple[int, ...]  # in the checkpoint
    transposed: bool = False  # there a matrix is (in, out)

    def fits(self, found: tuple[int, ...]) -> bool:
        """Whether that is the shape; axes of length 1 aside, which come and go."""
        return found == self.shape or _long(found) == _long(self.shape)

    def to_leaf(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The tensor as that part of the leaf, which has this shape: a view."""
        return (tensor.T if self.transposed else tensor).reshape(shape)

    def to_file(self, part: np.ndarray) -> np.ndarray:
        """The inverse of `to_leaf`."""
        return (part.T if self.transposed else part).reshape(self.shape)


@dataclass(frozen=True)
class Naming:
    """How checkpoints name and shape the tensors of a model.

    `stored(config, path, shape, layer)` yields every tensor of the leaf at that path, whose whole
    shape is given, or with a layer those of that layer. A leaf may have parts that no checkpoint
    has; they are zero. `unread` are endings of names that are passed over.
    """

    stored: Callable[[Config, str, tuple[int, ...], int | None], Iterator[Stored]]
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """A kind of model in Hugging Face's format.

    `read(values, where)` is the configuration in a `config.json`, `write(config, dtype, like)` the
    `config.json` of a configuration, taken over from another of the same model if given one.
    """

    config: type
    model: Callable[..., Any]  # (config, remat=False)
    shapes: Callable[[Config], Shapes]
    naming: Naming
    read: Callable[[Mapping[str, Any], str], Config]
    write: Callable[[Config, str, Mapping[str, Any] | None], dict[str, Any]]


def _long(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)
