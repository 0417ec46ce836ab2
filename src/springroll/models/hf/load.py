"""Weights of a Hugging Face folder as the parameter tree of a model, at once or layer by layer.

An RWKV-7 may also be a file of its authors, or a folder with one. Files are mapped, and checked as
a whole when they are opened (see `files`): headers, sizes, names, shapes. Tensors are then copied
one by one into their place, so that the peak is what they are copied into; the pages of the file
that were read are given back.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from springroll.gguf import Packed
from springroll.hub import hf_folder
from springroll.memory import available_bytes, check_fits
from springroll.models.decoder_config import structs, structure
from springroll.models.hf.family import Config, Model, Tensor
from springroll.models.hf.files import Checkpoint, family_of, leaves_of, open_hf
from springroll.quant.int8_weights import Select, in_blocks, int8_of, quantize_weights
from springroll.safetensors_map import forget
from springroll.trees import Params, PyTree, map_named, tree_bytes


def load_hf(folder: str | Path, dtype: DTypeLike | None = None) -> tuple[Model, Params]:
    """The model in a Hugging Face folder: `logits = model.apply(params, tokens)`.

    Args:
        folder: with a `config.json` and safetensors; of an RWKV-7 also a `.pth` or safetensors file
            of its authors, or a folder with one. A name such as `Qwen/Qwen2.5-0.5B` that is no
            folder here is downloaded (extra `hf`).
        dtype: of all weights; by default as stored.

    Returns:
        (a `Decoder` or `RWKV7`, params); params are on the default device, read leaf by leaf.

    Raises:
        InputError: an architecture that is not supported; a missing, truncated or other file; more
            weights than memory has room for.
    """
    checkpoint = open_hf(hf_folder(folder))
    config = checkpoint.config
    _check_fits(checkpoint, dtype, str(folder), available_bytes())
    leaves = (jnp.asarray(leaf) for leaf in _leaves(checkpoint, dtype))
    return family_of(config).model(config), jax.tree.unflatten(_structure(config), leaves)


def load_int8(folder: str | Path, rest: DTypeLike = jnp.float32) -> tuple[Model, Params]:
    """The same with the matrices of the blocks as `Int8`, and the `rest` in its own type.

    They are those of `quantize_weights`, made layer by layer: what is held beside them is one layer
    of one leaf in float32.

    Raises:
        InputError: as `load_hf` and `quantize_weights`.
    """
    return load_coded(folder, int8_of, in_blocks, rest)


def load_coded(
    folder: str | Path,
    code: Callable[[Array], PyTree],
    select: Select,
    rest: DTypeLike = jnp.float32,
) -> tuple[Model, Params]:
    """The same with any codes; `select`: of which stacked leaves, as of `quantize_weights`."""
    checkpoint = open_hf(hf_folder(folder))
    config = checkpoint.config
    floats = structs(family_of(config).shapes(config), rest)
    needed = tree_bytes(coded_structs(floats, code, select))
    check_fits(needed, f"the weights of {folder}", available_bytes())

    def leaf(path: str, like: jax.ShapeDtypeStruct) -> PyTree:
        if not select(path, like):
            return jnp.asarray(_leaf(checkpoint, path, like.shape, like.dtype))
        held = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), jax.eval_shape(code, like))
        for layer, part in enumerate(read_parts(checkpoint, path, like.shape, jnp.float32)):
            one = quantize_weights({path: jnp.asarray(part)}, lambda *_: True, code)[path]
            for whole, of_layer in zip(*map(jax.tree.leaves, (held, one)), strict=True):
                whole[layer] = of_layer
        return jax.tree.map(jnp.asarray, held)

    return family_of(config).model(config), map_named(leaf, floats)


def coded_structs(floats: Params, code: Callable[[Array], PyTree], select: Select) -> Params:
    """The tree that `quantize_weights` makes, without values; of one that has none."""
    return jax.eval_shape(lambda params: quantize_weights(params, select, code), floats)


def read_parts(
    checkpoint: Checkpoint,
    path: str,
    shape: tuple[int, ...],
    dtype: DTypeLike,
    whole: bool = False,
) -> Iterator[np.ndarray]:
    """A leaf of this shape on the host, layer by layer; if it is no stack, or so asked, whole."""
    if whole or not _stacked(path):
        yield _leaf(checkpoint, path, shape, dtype)
        return
    for layer in range(shape[0]):
        part = np.zeros(shape[1:], dtype)
        read_into(checkpoint, path, part, layer)
        yield part


def read_params(folder: str | Path, config: Config, dtype: DTypeLike | None = None) -> Params:
    """The parameter tree (see `decoder_config` and `rwkv7.config`), on the host.

    Args:
        dtype: of all leaves; by default as stored.

    Raises:
        InputError: as `open_hf`, or more than memory has room for; before anything is allocated.
    """
    checkpoint = open_hf(folder, config)
    _check_fits(checkpoint, dtype, str(folder))
    return jax.tree.unflatten(_structure(config), _leaves(checkpoint, dtype))


def read_layer(checkpoint: Checkpoint, layer: int, dtype: DTypeLike | None = None) -> Params:
    """One slice of params["layers"], on the host.

    Without a change of dtype, matrices are views of the mapped file and cost nothing until they are
    used; the experts of a layer are stacked, which copies them.
    """
    at = {path: shape[1:] for path, shape in leaves_of(checkpoint.config) if _stacked(path)}
    leaves = [_view_or_copy(checkpoint, path, shape, dtype, layer) for path, shape in at.items()]
    return jax.tree.unflatten(_structure(checkpoint.config, "layers"), leaves)


def read_rest(checkpoint: Checkpoint, dtype: DTypeLike | None = None) -> Params:
    """The parameters outside the layers (embedding, last norm, head), as `read_layer`."""
    at = {path: shape for path, shape in leaves_of(checkpoint.config) if not _stacked(path)}
    return {path: _view_or_copy(checkpoint, path, shape, dtype) for path, shape in at.items()}


def read_bundles(checkpoint: Checkpoint, dtype: DTypeLike | None = None) -> Iterator[Params]:
    """Every layer, then the rest: trees to copy into a store one after the other."""
    for layer in range(checkpoint.config.layers):
        yield read_layer(checkpoint, layer, dtype)
    yield read_rest(checkpoint, dtype)


def read_into(
    checkpoint: Checkpoint, path: str, destination: np.ndarray, layer: int | None = None
) -> None:
    """Copy a leaf into memory that is there, tensor by tensor, changing the dtype on the way.

    Parts that the checkpoint has not are left as they are.

    Args:
        path: of the leaf, as "layers/self_attn/q_proj" or "norm".
        destination: of the leaf's shape; with `layer`, of one layer's.
    """
    shape = destination.shape if layer is None else (checkpoint.config.layers, *destination.shape)
    for stored in checkpoint.stored(path, shape, layer):
        tensor = checkpoint.tensors[stored.name]
        into = destination[stored.place if layer is None else stored.place[1:]]
        np.copyto(into, stored.to_leaf(_numbers(tensor, into.dtype), into.shape), casting="unsafe")
        if isinstance(tensor, np.ndarray):  # unpacking one has done so
            forget(tensor)


def _structure(config: Config, part: str | None = None) -> PyTree:
    tree = family_of(config).shapes(config)
    return structure(tree[part] if part else tree)


def _numbers(tensor: Tensor, dtype: np.dtype) -> np.ndarray:
    """A view of a tensor as it is stored; one that is packed, unpacked to that type."""
    return np.asarray(tensor, dtype) if isinstance(tensor, Packed) else tensor


def _stacked(path: str) -> bool:
    return path.startswith("layers/")


def _leaves(checkpoint: Checkpoint, dtype: DTypeLike | None) -> Iterator[np.ndarray]:
    """Every leaf, whole, in memory of its own."""
    for path, shape in leaves_of(checkpoint.config):
        yield _leaf(checkpoint, path, shape, _dtype(checkpoint, path, shape, dtype))


def _leaf(
    checkpoint: Checkpoint, path: str, shape: tuple[int, ...], dtype: DTypeLike
) -> np.ndarray:
    leaf = np.zeros(shape, dtype)
    read_into(checkpoint, path, leaf)
    return leaf


def _check_fits(
    checkpoint: Checkpoint, dtype: DTypeLike | None, folder: str, free: int | None = None
) -> None:
    kinds = (
        (shape, _dtype(checkpoint, at, shape, dtype)) for at, shape in leaves_of(checkpoint.config)
    )
    needed = sum(math.prod(shape) * kind.itemsize for shape, kind in kinds)
    check_fits(needed, f"the weights of {folder}", free)


def _dtype(
    checkpoint: Checkpoint, path: str, shape: tuple[int, ...], dtype: DTypeLike | None
) -> np.dtype:
    """As asked for; by default as stored, of what is not stored as the embedding."""
    stored = checkpoint.stored(path, shape) or checkpoint.stored("embed_tokens", ())
    return jnp.dtype(dtype or checkpoint.tensors[stored[0].name].dtype)


def _view_or_copy(
    checkpoint: Checkpoint,
    path: str,
    shape: tuple[int, ...],
    dtype: DTypeLike | None,
    layer: int | None = None,
) -> np.ndarray:
    full = shape if layer is None else (checkpoint.config.layers, *shape)
    dtype = _dtype(checkpoint, path, full, dtype)
    stored = checkpoint.stored(path, full, layer)
    if len(stored) == 1 and checkpoint.tensors[stored[0].name].dtype == dtype:
        return stored[0].to_leaf(_numbers(checkpoint.tensors[stored[0].name], dtype), shape)
    leaf = np.zeros(shape, dtype)
    read_into(checkpoint, path, leaf, layer)
    return leaf
