"""Weights of a Hugging Face folder as the parameter tree of a decoder, at once or layer by layer.

Files are mapped, and checked as a whole when the folder is opened: headers, sizes, names, shapes.
Tensors are then copied one by one into their place, so that the peak is what they are copied into;
the pages of the file that were read are given back.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from springroll import atomic
from springroll.errors import InputError
from springroll.models.decoder import Decoder, decoder
from springroll.models.decoder_config import DecoderConfig
from springroll.models.decoder_shapes import shapes
from springroll.models.hf_config import hf_config
from springroll.models.safetensors_map import forget, mapped

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
UNREAD = ("lm_head.weight", "rotary_emb.inv_freq")  # of tied models; of old checkpoints
FLOATS = (jnp.bfloat16, np.float16, np.float32, np.float64)


def load_hf(folder: str | Path, dtype: Any = None) -> tuple[Decoder, dict[str, Any]]:
    """The model in a Hugging Face folder: `logits = model.apply(params, tokens)`.

    Args:
        dtype: of all weights; by default as stored.

    Returns:
        (model, params); params are on the default device, read leaf by leaf.

    Raises:
        InputError: an architecture that is not supported; a missing, truncated or other file.
    """
    checkpoint = open_hf(folder)
    leaves = (jnp.asarray(leaf) for leaf in _leaves(checkpoint, dtype))
    return decoder(checkpoint.config), jax.tree.unflatten(_structure(checkpoint.config), leaves)


def is_hf_folder(path: str | Path) -> bool:
    """Whether there is a model in the folder: a `config.json` with a `model_type`."""
    try:
        return "model_type" in json.loads((Path(path) / "config.json").read_text())
    except (OSError, ValueError):
        return False


def read_config(folder: str | Path) -> DecoderConfig:
    """The shape of the model in a folder; no weights are read."""
    return hf_config(read_json(folder), str(Path(folder) / "config.json"))


def read_json(folder: str | Path) -> dict[str, Any]:
    """The config.json of a folder as it stands there."""
    return atomic.read_json(Path(folder) / "config.json")


@dataclass(frozen=True)
class Checkpoint:
    """An open folder: what the model is, and views of all its tensors in the mapped files."""

    config: DecoderConfig
    tensors: Mapping[str, np.ndarray]


def open_hf(folder: str | Path, config: DecoderConfig | None = None) -> Checkpoint:
    """Open a folder; no weights are read, but all that can be wrong with them is found.

    Args:
        config: by default that of the folder's config.json.

    Raises:
        InputError: a file is missing, truncated or damaged, a tensor is missing, has another shape
            than the config says, is quantized, or would not be read.
    """
    config = read_config(folder) if config is None else config
    tensors = _tensors(Path(folder))
    needed = set()
    for path, shape in _paths(config):
        for index, name in checkpoint_names(path, shape):
            _check(tensors, name, path, shape[len(index) :])
            needed.add(name)
    unread = [n for n in tensors if n not in needed and not n.endswith(UNREAD)]
    if unread:
        raise InputError(
            f"{folder} holds {len(unread)} tensors that the model of its config.json has not, "
            f"{unread[0]} first; without them it would compute something else"
        )
    return Checkpoint(config, tensors)


def read_params(folder: str | Path, config: DecoderConfig, dtype: Any = None) -> dict[str, Any]:
    """The parameter tree (see `decoder_shapes`), on the host.

    Args:
        dtype: of all leaves; by default as stored.

    Raises:
        InputError: as `open_hf`, before anything is allocated.
    """
    return jax.tree.unflatten(_structure(config), _leaves(open_hf(folder, config), dtype))


def read_layer(checkpoint: Checkpoint, layer: int, dtype: Any = None) -> dict[str, Any]:
    """One slice of params["layers"], on the host.

    Without a change of dtype, matrices are views of the mapped file and cost nothing until they are
    used; the experts of a layer are stacked, which copies them.
    """
    at = {path: shape[1:] for path, shape in _paths(checkpoint.config) if _stacked(path)}
    found = [_view_or_copy(checkpoint, path, shape, dtype, layer) for path, shape in at.items()]
    return jax.tree.unflatten(_structure(checkpoint.config, "layers"), found)


def read_rest(checkpoint: Checkpoint, dtype: Any = None) -> dict[str, Any]:
    """The parameters outside the layers (embedding, last norm, head), as `read_layer`."""
    at = {path: shape for path, shape in _paths(checkpoint.config) if not _stacked(path)}
    return {path: _view_or_copy(checkpoint, path, shape, dtype) for path, shape in at.items()}


def read_bundles(checkpoint: Checkpoint, dtype: Any = None) -> Iterator[dict[str, Any]]:
    """Every layer, then the rest: trees to copy into a store one after the other."""
    for layer in range(checkpoint.config.layers):
        yield read_layer(checkpoint, layer, dtype)
    yield read_rest(checkpoint, dtype)


def read_into(
    checkpoint: Checkpoint, path: str, destination: np.ndarray, layer: int | None = None
) -> None:
    """Copy a leaf into memory that is there, tensor by tensor, changing the dtype on the way.

    Args:
        path: of the leaf, as "layers/self_attn/q_proj" or "norm".
        destination: of the leaf's shape; with `layer`, of one layer's.
    """
    shape = (checkpoint.config.layers, *destination.shape) if layer is not None else None
    for index, name in checkpoint_names(path, shape or destination.shape, layer):
        tensor = checkpoint.tensors[name]
        np.copyto(destination[index if layer is None else index[1:]], tensor, casting="unsafe")
        forget(tensor)


def checkpoint_names(
    path: str, shape: tuple[int, ...], layer: int | None = None
) -> Iterator[tuple[tuple[int, ...], str]]:
    """(index into the stacks, name in the checkpoint) of every tensor of a leaf, or of one layer's.

    `shape` is that of the whole leaf.
    """
    *inside, leaf = path.split("/")
    stem, kind = leaf, ".weight"
    if leaf == "e_score_correction_bias":
        stem, kind = f"gate.{leaf}", ""
    elif leaf.endswith("_bias"):
        stem, kind = leaf.removesuffix("bias") + "proj", ".bias"
    if not inside:
        yield (), stem + kind if leaf == "lm_head" else f"model.{stem}{kind}"
        return
    layers = range(shape[0]) if layer is None else (layer,)
    experts = [range(shape[1])] if "experts" in inside else []
    for index in itertools.product(layers, *experts):
        parts = ["model.layers", str(index[0]), *inside[1:], *map(str, index[1:])]
        yield index, ".".join([*parts, stem]) + kind


def _paths(config: DecoderConfig) -> list[tuple[str, tuple[int, ...]]]:
    """(path, shape) of every leaf, in the order of the tree."""
    is_shape = lambda node: isinstance(node, tuple)
    leaves = jax.tree_util.tree_leaves_with_path(shapes(config), is_leaf=is_shape)
    spelt = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    return [(spelt(path), shape) for path, shape in leaves]


def _structure(config: DecoderConfig, part: str | None = None) -> Any:
    tree = shapes(config)
    return jax.tree.structure(tree[part] if part else tree, is_leaf=lambda x: isinstance(x, tuple))


def _stacked(path: str) -> bool:
    return path.startswith("layers/")


def _leaves(checkpoint: Checkpoint, dtype: Any) -> Iterator[np.ndarray]:
    """Every leaf, whole, in memory of its own."""
    for path, shape in _paths(checkpoint.config):
        _, name = next(checkpoint_names(path, shape))
        leaf = np.empty(shape, jnp.dtype(dtype or checkpoint.tensors[name].dtype))
        read_into(checkpoint, path, leaf)
        yield leaf


def _view_or_copy(
    checkpoint: Checkpoint,
    path: str,
    shape: tuple[int, ...],
    dtype: Any,
    layer: int | None = None,
) -> np.ndarray:
    whole = shape if layer is None else (checkpoint.config.layers, *shape)
    first = checkpoint.tensors[next(checkpoint_names(path, whole, layer))[1]]
    dtype = jnp.dtype(dtype or first.dtype)
    if first.shape == shape and first.dtype == dtype:
        return first
    leaf = np.empty(shape, dtype)
    read_into(checkpoint, path, leaf, layer)
    return leaf


def _check(tensors: Mapping[str, np.ndarray], name: str, path: str, shape: tuple[int, ...]) -> None:
    if name not in tensors:
        raise InputError(f"the checkpoint has no tensor {name} (for {path})")
    found = tensors[name]
    if found.shape != shape:
        raise InputError(
            f"{name} has the shape {list(found.shape)}; config.json says {list(shape)}"
        )
    if found.dtype not in FLOATS:
        raise InputError(
            f"{name} is stored as {found.dtype}; expected bfloat16, float16 or float32: "
            "take the checkpoint that is not quantized"
        )


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    """Tensor name -> view of the mapped file that holds it."""
    index = folder / INDEX
    if index.exists():
        try:
            where: dict[str, str] = json.loads(index.read_text())["weight_map"]
            names = sorted(set(where.values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"cannot read {index}: expected JSON with a weight_map") from None
        lost = [name for name in names if not (folder / name).is_file()]
        if lost:
            raise InputError(
                f"{folder} lacks {len(lost)} of its {len(names)} shards, {lost[0]} first; "
                "download it again"
            )
    elif (folder / SINGLE).exists():
        names = [SINGLE]
    else:
        raise InputError(f"{folder} holds neither {SINGLE} nor {INDEX}")
    return {name: view for file in names for name, view in mapped(folder / file).items()}
