"""Weights of a Hugging Face folder as the parameter tree of a decoder.

Tensors are read one by one into their place in the stacks, so that the peak is the tree and one
tensor.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from springroll.errors import InputError
from springroll.models.decoder_config import DecoderConfig
from springroll.models.decoder_shapes import shapes
from springroll.models.hf_config import hf_config

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def is_hf_folder(path: str | Path) -> bool:
    """Whether there is a model in the folder: a `config.json` with a `model_type`."""
    try:
        return "model_type" in json.loads((Path(path) / "config.json").read_text())
    except (OSError, ValueError):
        return False


def read_config(folder: str | Path) -> DecoderConfig:
    """The shape of the model in a folder; no weights are read."""
    path = Path(folder) / "config.json"
    try:
        return hf_config(json.loads(path.read_text()), str(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from None


def read_params(folder: str | Path, config: DecoderConfig, dtype: Any = None) -> dict[str, Any]:
    """The parameter tree (see `decoder_shapes`), on the host.

    Args:
        dtype: of all leaves; by default as stored.

    Raises:
        InputError: a file or tensor is missing, or a tensor has another shape than the config says.
    """
    files = _files(Path(folder))
    is_shape = lambda node: isinstance(node, tuple)
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes(config), is_leaf=is_shape)
    spelt = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    return tree.unflatten(
        [_leaf(files, path, shape, dtype) for path, (_, shape) in zip(spelt, leaves, strict=True)]
    )


def checkpoint_names(path: str, shape: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], str]]:
    """(index into the stacks, name in the checkpoint) of every tensor of a leaf."""
    *inside, leaf = path.split("/")
    stem, kind = leaf, ".weight"
    if leaf == "e_score_correction_bias":
        stem, kind = f"gate.{leaf}", ""
    elif leaf.endswith("_bias"):
        stem, kind = leaf.removesuffix("bias") + "proj", ".bias"
    if not inside:
        yield (), stem + kind if leaf == "lm_head" else f"model.{stem}{kind}"
        return
    stacks = 2 if "experts" in inside else 1
    for index in np.ndindex(*shape[:stacks]):
        parts = ["model.layers", str(index[0]), *inside[1:], *map(str, index[1:])]
        yield index, ".".join([*parts, stem]) + kind


def _leaf(files: dict[str, Any], path: str, shape: tuple[int, ...], dtype: Any) -> Any:
    whole: np.ndarray | None = None
    for index, name in checkpoint_names(path, shape):
        if name not in files:
            raise InputError(f"the checkpoint has no tensor {name} (for {path})")
        tensor = np.asarray(files[name].get_tensor(name))
        if tensor.shape != shape[len(index) :]:
            raise InputError(
                f"{name} has the shape {list(tensor.shape)}; config.json says "
                f"{list(shape[len(index) :])}"
            )
        if whole is None:
            whole = np.empty(shape, jnp.dtype(dtype or tensor.dtype))
        whole[index] = tensor
    return whole


def _files(folder: Path) -> dict[str, Any]:
    """Tensor name -> the open file that holds it; nothing is read yet."""
    from safetensors import SafetensorError, safe_open

    index = folder / INDEX
    if index.exists():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    elif (folder / SINGLE).exists():
        names = [SINGLE]
    else:
        raise InputError(f"{folder} holds neither {SINGLE} nor {INDEX}")
    found = {}
    for name in names:
        try:
            file = safe_open(folder / name, framework="flax")
        except (OSError, SafetensorError) as error:
            raise InputError(f"cannot read {folder / name}: {error}") from None
        found |= dict.fromkeys(file.keys(), file)
    return found
