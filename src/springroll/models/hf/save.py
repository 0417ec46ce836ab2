"""A model as a Hugging Face folder: config.json and safetensors, layer by layer.

What goes where is known from the shapes, so that every tensor is written straight to its place: the
peak is one tensor. A file has a temporary name until it is whole, and the file without which no
program takes the folder for a model is renamed last.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from springroll.atomic import JsonObject, replacing
from springroll.errors import InputError, as_path, expect, kind_of
from springroll.hub import hf_folder
from springroll.memory import spelt
from springroll.models.decoder import Decoder
from springroll.models.decoder_config import DecoderConfig
from springroll.models.hf.family import Config, Model, Naming, Stored
from springroll.models.hf.files import INDEX, SINGLE, family_of, leaves_of, read_config, read_json
from springroll.models.rwkv7.config import RWKV7Config
from springroll.models.rwkv7.model import RWKV7
from springroll.ranges import Range, check_number
from springroll.trees import Params, named_leaves

SHARD_BYTES = 5_000_000_000
# What stands beside the weights and belongs to the text, not to them.
OF_TEXT = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "hf_rwkv_tokenizer.py",
    "merges.txt",
    "rwkv_vocab_v20230424.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
DTYPES = {"bfloat16": "BF16", "float32": "F32"}


def save_hf(
    folder: str | Path,
    model: Model | Config,
    params: Params | Iterable[Params],
    *,
    dtype: DTypeLike | None = None,
    like: str | Path | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write a model that transformers, vLLM and `load_hf` read.

    Args:
        folder: is made if it is not there; must not hold a model.
        model: a `Decoder` or `RWKV7`, or its config.
        params: the parameter tree; or an iterable of the layers (each a slice of
            params["layers"]) and then of the rest, of which one at a time is looked at.
        dtype: bfloat16 or float32, of all tensors; by default that of the tree's embedding. An
            iterable needs one.
        like: the model it came from, named as for `load_hf`; its config.json, tokenizer and
            templates are copied.
        shard_bytes: a file has at most so many, unless one tensor has more.

    Returns:
        The folder.

    Raises:
        InputError: the folder holds a model, the disk is too small, no architecture in Hugging
            Face's format is this model, or `like` is another; parameters have other shapes than
            the model, which is known before anything is written where they are a tree.
    """
    folder = as_path(folder)
    config = model.config if isinstance(model, Decoder | RWKV7) else model
    known = isinstance(config, DecoderConfig | RWKV7Config)
    expect(known, "model", model, "a Decoder, an RWKV7 or the config of one")
    check_number("shard_bytes", shard_bytes, int, Range(at_least=1, below=2**63))
    fits = isinstance(params, Iterable) and not isinstance(params, str | bytes)
    expect(fits, "params", params, "the tree of parameters, or its layers and then the rest")
    if isinstance(params, Mapping):
        tree = cast(Params, params)
        _check_tree(tree, config)
        dtype = tree["embed_tokens"].dtype if dtype is None else dtype
        params = _bundles(tree, config.layers)
    name = _dtype_name(dtype)
    like = None if like is None else hf_folder(like)
    described = _described(config, name, like)
    naming = family_of(config).naming_of(described)
    plan = list(_shards(_planned(config, naming, jnp.dtype(dtype)), shard_bytes))
    check_room(folder, sum(shard.bytes for shard in plan))
    folder.mkdir(parents=True, exist_ok=True)
    for source in () if like is None else map(Path(like).joinpath, OF_TEXT):
        if source.is_file():
            shutil.copyfile(source, folder / source.name)
    with replacing(folder / "config.json") as file:
        file.write((json.dumps(described, indent=2) + "\n").encode())
    _write_shards(folder, plan, _tensors(config, naming, params), jnp.dtype(dtype))
    return folder


def _dtype_name(dtype: DTypeLike | None) -> str:
    """The type of a folder's tensors, one of `DTYPES`."""
    try:
        name = "none" if dtype is None else jnp.dtype(dtype).name
    except TypeError:
        name = kind_of(dtype)
    if name not in DTYPES:
        raise InputError(f"dtype of the folder is {name}; expected bfloat16 or float32")
    return name


def _check_tree(tree: Params, config: Config) -> None:
    """Raise InputError for parameters that are not those of the model."""
    leaves = named_leaves(tree)
    for path, expected in leaves_of(config):
        shape = getattr(leaves.get(path), "shape", "not there")
        if shape != expected:
            raise InputError(f"{path} is {shape}; the model has {expected}")


def _described(config: Config, dtype: str, like: str | Path | None) -> JsonObject:
    """The config.json to write; of `like`, unless that is a lone file of weights."""
    write = family_of(config).write
    if like is None or os.path.exists(Path(like) / "config.json"):
        return write(config, dtype, None if like is None else read_json(like))
    if read_config(like) != config:
        raise InputError(f"the folder to write is another model than `like`: {like} differs")
    return write(config, dtype, None)


@dataclass(frozen=True)
class Shard:
    """One file: its tensors' names and shapes in the order they lie in it."""

    tensors: dict[str, tuple[int, ...]]
    itemsize: int

    @property
    def bytes(self) -> int:
        return sum(math.prod(shape) for shape in self.tensors.values()) * self.itemsize

    def header(self, dtype: str) -> bytes:
        """The length and the JSON, padded so that the numbers begin at a multiple of eight."""
        begin, entries = 0, {}
        for name, shape in self.tensors.items():
            end = begin + math.prod(shape) * self.itemsize
            entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
            begin = end
        text = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def _bundles(params: Params, layers: int) -> Iterator[Params]:
    """The layers of a tree, one slice at a time, then the rest."""
    for i in range(layers):
        yield jax.tree.map(lambda x, i=i: x[i], params["layers"])
    yield {name: leaf for name, leaf in params.items() if name != "layers"}


def _leaves(config: Config, layer: int | None) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(path, whole shape) of the leaves of a layer, or with None of the rest."""
    for path, shape in leaves_of(config):
        if path.startswith("layers/") == (layer is not None):
            yield path, shape


def _parts(
    config: Config, naming: Naming[Any], layer: int | None
) -> dict[str, list[tuple[str, Stored]]]:
    """Of every tensor of a layer, or with None of the rest: its parts, and the leaf of each."""
    found: dict[str, list[tuple[str, Stored]]] = {}
    for path, shape in _leaves(config, layer):
        for stored in naming.stored(config, path, shape, layer):
            found.setdefault(stored.name, []).append((path, stored))
    return found


def _planned(
    config: Config, naming: Naming[Any], dtype: np.dtype
) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """(name, shape, bytes) of every tensor, in the order in which they are written."""
    for layer in [*range(config.layers), None]:
        for name, parts in _parts(config, naming, layer).items():
            shape = parts[0][1].shape
            yield name, shape, math.prod(shape) * dtype.itemsize


def _shards(
    tensors: Iterable[tuple[str, tuple[int, ...], int]], shard_bytes: int
) -> Iterator[Shard]:
    held: dict[str, tuple[int, ...]] = {}
    size, itemsize = 0, 1
    for name, shape, count in tensors:
        if held and size + count > shard_bytes:
            yield Shard(held, itemsize)
            held, size = {}, 0
        held[name] = shape
        size += count
        itemsize = count // math.prod(shape)
    yield Shard(held, itemsize)


def _tensors(
    config: Config, naming: Naming[Any], bundles: Iterable[Params]
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) in the order of the plan.

    Raises:
        InputError: a bundle that the model has not, or lacks, or one of other shapes.
    """
    for layer, bundle in itertools.zip_longest([*range(config.layers), None], bundles):
        leaves = named_leaves(bundle)
        inner = lambda path: path.removeprefix("layers/")
        for path, shape in _leaves(config, layer):
            name, expected = inner(path), shape[layer is not None :]
            if name not in leaves or leaves[name].shape != expected:
                actual = leaves[name].shape if name in leaves else "not there"
                where = "the rest" if layer is None else f"layer {layer}"
                raise InputError(f"{name} of {where} is {actual}; the model has {expected}")
        for name, parts in _parts(config, naming, layer).items():
            tensor = None
            for path, stored in parts:
                leaf = np.asarray(leaves[inner(path)])
                tensor = np.empty(stored.shape, leaf.dtype) if tensor is None else tensor
                place = stored.place if layer is None else stored.place[1:]
                stored.to_file(leaf[place], tensor)
            assert tensor is not None
            yield name, tensor


def _write_shards(
    folder: Path, plan: list[Shard], tensors: Iterator[tuple[str, np.ndarray]], dtype: np.dtype
) -> None:
    count, where = len(plan), {}
    for k, shard in enumerate(plan):
        name = SINGLE if count == 1 else f"model-{k + 1:05d}-of-{count:05d}.safetensors"
        where |= dict.fromkeys(shard.tensors, name)
        with replacing(folder / name) as file:
            file.write(shard.header(DTYPES[dtype.name]))
            for expected, (written, tensor) in zip(shard.tensors, tensors, strict=False):
                assert expected == written, (expected, written)
                rows = np.ascontiguousarray(tensor.astype(dtype, copy=False))
                file.write(rows.reshape(-1).view(np.uint8).data)
    if count > 1:
        total = {"total_size": sum(shard.bytes for shard in plan)}
        with replacing(folder / INDEX) as file:
            file.write(json.dumps({"metadata": total, "weight_map": where}, indent=2).encode())


def check_room(folder: Path, needed: int) -> None:
    """Raise InputError unless a folder is free for a model of so many bytes."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder")
    held = [
        p.name
        for pattern in ("config.json", "*.safetensors", "*.safetensors.index.json")
        for p in folder.glob(pattern)
    ]
    if held:
        raise InputError(f"{folder} already holds {held[0]}; choose another folder or empty it")
    place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise InputError(
            f"the folder takes {spelt(needed)} and {place} has {spelt(free)} free; choose another "
            "disk"
        )
