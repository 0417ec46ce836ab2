"""What a checkpoint and a parameter tree must know of each other, for any kind of model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np

from springroll.atomic import JsonObject
from springroll.errors import InputError
from springroll.gguf import Packed
from springroll.models.decoder import Decoder
from springroll.models.decoder_config import DecoderConfig, Shapes
from springroll.models.rwkv7.config import RWKV7Config
from springroll.models.rwkv7.model import RWKV7

Model: TypeAlias = Decoder | RWKV7
Config: TypeAlias = DecoderConfig | RWKV7Config
Tensor: TypeAlias = np.ndarray | Packed
C = TypeVar("C", DecoderConfig, RWKV7Config)


class Stored(NamedTuple):
    """One tensor of a checkpoint, or a part of one, and where in the parameter tree it belongs."""

    place: tuple[int, ...]  # into the leaf's stacks
    name: str
    shape: tuple[int, ...]  # of the whole tensor in the checkpoint
    transposed: bool = False  # there a matrix is (in, out)
    part: tuple[int | slice, ...] = ()  # of the tensor, where it holds other matrices too

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether that is the shape; axes of length 1 aside, which come and go."""
        ones = not self.part and _without_ones(shape) == _without_ones(self.shape)
        return shape == self.shape or ones

    def to_leaf(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The tensor as that part of the leaf, which has this shape: a view."""
        tensor = tensor[self.part] if self.part else tensor
        return (tensor.T if self.transposed else tensor).reshape(shape)

    def to_file(self, leaf: np.ndarray, tensor: np.ndarray) -> None:
        """The inverse of `to_leaf`: write that part of a leaf into the tensor."""
        into = tensor[self.part]
        into[...] = (leaf.T if self.transposed else leaf).reshape(into.shape)


@dataclass(frozen=True)
class Naming(Generic[C]):
    """How checkpoints name and shape the tensors of a model.

    `stored(config, path, shape, layer)` yields every tensor of the leaf at that path, whose whole
    shape is given, or with a layer those of that layer. A leaf may have parts that no checkpoint
    has; they are zero. `unread` are endings of names that are passed over. `copies` are names that
    a model may not need, and of which tensor they are then copies.
    """

    stored: Callable[[C, str, tuple[int, ...], int | None], Iterator[Stored]]
    unread: tuple[str, ...] = ()
    copies: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Family(Generic[C]):
    """A kind of model in Hugging Face's format.

    `naming` is how most checkpoints name its tensors, `joined` how those of some `model_type` do.
    `read(values, where)` is the configuration in a `config.json`, `write(config, dtype, like)` the
    `config.json` of a configuration, taken over from another of the same model if given one.
    """

    config: type[C]
    model: Callable[..., Model]  # (config, remat=False)
    shapes: Callable[[C], Shapes]
    naming: Naming[C]
    read: Callable[[JsonObject, str], C]
    write: Callable[[C, str, JsonObject | None], JsonObject]
    joined: Mapping[str, Naming[C]] = field(default_factory=dict)

    def naming_of(self, config_json: JsonObject) -> Naming[C]:
        """That of the checkpoint with this `config.json`."""
        return self.joined.get(str(config_json.get("model_type")), self.naming)


def taken_over(like: JsonObject, differing: Sequence[str], dtype: str) -> JsonObject:
    """The `config.json` of a folder that is written like another, with tensors of this type.

    Raises:
        InputError: fields of the two configurations differ.
    """
    if differing:
        raise InputError(
            f"the folder to write is another model than `like`: {differing[0]} differs"
        )
    kept = {k: v for k, v in like.items() if k not in ("dtype", "quantization_config")}
    return kept | {"torch_dtype": dtype}


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)
