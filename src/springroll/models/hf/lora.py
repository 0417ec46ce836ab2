"""LoRA adapters as PEFT reads them: one that was trained, or the best one of a rank for a change.

A matrix W of the model became W + D. The adapter holds B A, of rank r, with the least error of all
such products: D's r largest singular values (Eckart and Young, 1936). PEFT adds B A (its scale,
alpha / r, is 1 there).
"""

import math
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from springroll.atomic import replacing, write_json
from springroll.errors import InputError
from springroll.hub import hf_folder
from springroll.models.decoder_config import DecoderConfig
from springroll.models.hf.family import Config
from springroll.models.hf.files import Checkpoint, leaves_of, open_hf
from springroll.models.hf.load import read_parts
from springroll.models.hf.save import check_room
from springroll.trees import Params, named_leaves

WEIGHTS = "adapter_model.safetensors"


class Loss(NamedTuple):
    """What an adapter leaves out of the change of some weights: sums of squares."""

    change: float = 0.0
    left_out: float = 0.0

    def plus(self, change: float, left_out: float) -> "Loss":
        return Loss(self.change + change, self.left_out + left_out)

    @property
    def relative(self) -> float:
        """The norm of what is left out over that of the change; 0 where nothing changed."""
        return math.sqrt(self.left_out / self.change) if self.change else 0.0


class Adapter(NamedTuple):
    """How an adapter is scaled: B A times `alpha` / `rank`."""

    rank: int
    alpha: float


def save_adapter(
    folder: str | Path, config: Config, trained: Params, base: str | Path, adapter: Adapter
) -> None:
    """Write an adapter that was trained as one, in float32.

    Args:
        folder: is made if it is not there; must not hold a model.
        config: of a decoder without experts.
        trained: {"lora_A": (layers, rank, in), "lora_B": (layers, out, rank)} in the places of the
            adapted matrices.
        base: the model that it belongs to, named as for `load_hf`; PEFT is told this name.
        adapter: its scale.

    Raises:
        InputError: as `save_lora`.
    """
    checkpoint = _adaptable(config, base)
    written: dict[str, np.ndarray] = {}
    leaves = named_leaves(trained)
    names: dict[str, None] = {}  # in order
    for path, shape in leaves_of(config):
        if f"{path}/lora_A" not in leaves:
            continue
        names[path.rpartition("/")[2]] = None
        for layer in range(shape[0]):
            module = _module(checkpoint, path, shape, layer)
            for side in ("lora_A", "lora_B"):
                written[f"{module}.{side}.weight"] = np.asarray(leaves[f"{path}/{side}"][layer])
    _write(folder, written, str(base), adapter, list(names))


def save_lora(
    folder: str | Path, config: Config, params: Params, base: str | Path, rank: int
) -> dict[str, Loss]:
    """Write `adapter_config.json` and `adapter_model.safetensors`, in float32.

    Only the matrices within layers are adapted. Of other weights (embedding, head, norms, biases)
    the whole change is left out, and counted so.

    Args:
        folder: is made if it is not there; must not hold a model.
        config: of a decoder without experts.
        params: the changed weights.
        base: the model they were before, named as for `load_hf`; PEFT is told this name.
        rank: of every product; matrices that are smaller get zeros.

    Returns:
        By the name of the matrix or vector ("q_proj", "embed_tokens") what the adapter leaves out.

    Raises:
        InputError: a model that PEFT cannot adapt, another base, a folder that is in use.
    """
    checkpoint = _adaptable(config, base)
    adapted: dict[str, np.ndarray] = {}
    losses: dict[str, Loss] = {}
    leaves = named_leaves(params)
    names: dict[str, None] = {}  # in order
    for path, shape in leaves_of(config):
        kind, layered = path.rpartition("/")[2], path.startswith("layers/")
        for layer, before in enumerate(read_parts(checkpoint, path, shape, np.float32)):
            leaf = leaves[path][layer] if layered else leaves[path]
            change = np.asarray(leaf.astype(jnp.float32)) - before
            whole = float(np.square(change, dtype=np.float64).sum())
            left = whole
            if layered and change.ndim == 2:
                names[kind] = None
                b, a, left = _best(change, rank)
                module = _module(checkpoint, path, shape, layer)
                adapted |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
            losses[kind] = losses.get(kind, Loss()).plus(whole, left)
    _write(folder, adapted, str(base), Adapter(rank, rank), list(names))
    return losses


def _adaptable(config: Config, base: str | Path) -> Checkpoint:
    """The opened base, if PEFT can add to every matrix of its layers.

    Raises:
        InputError: it cannot, or it is another model.
    """
    instead = "leave out --lora-rank or --adapter to write the whole model"
    if not isinstance(config, DecoderConfig) or config.experts:
        raise InputError(f"an adapter can be written of decoders without experts; {instead}")
    checkpoint = open_hf(hf_folder(base), config)
    if any(checkpoint.stored(path, shape)[0].part for path, shape in leaves_of(config)):
        raise InputError(
            f"{base} joins several matrices in one tensor, of which no adapter can be written; "
            f"{instead}"
        )
    return checkpoint


def _module(checkpoint: Checkpoint, path: str, shape: tuple[int, ...], layer: int) -> str:
    """The name that PEFT has for a matrix of a layer."""
    (stored,) = checkpoint.stored(path, shape, layer)
    return f"base_model.model.{stored.name.removesuffix('.weight')}"


def _write(
    folder: str | Path,
    tensors: dict[str, np.ndarray],
    base: str,
    adapter: Adapter,
    modules: list[str],
) -> None:
    folder = Path(folder)
    check_room(folder, sum(array.nbytes for array in tensors.values()))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "adapter_config.json", _config(base, adapter, modules))
    with replacing(folder / WEIGHTS) as file:  # last: without them the folder can be written again
        file.write(save(tensors, metadata={"format": "pt"}))


def _best(change: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, float]:
    """B (m, r), A (r, n) with B A nearest to the change (m, n), and its squared error."""
    left, values, right = np.linalg.svd(change, full_matrices=False)
    kept = min(rank, len(values))
    root = np.sqrt(values[:kept])
    b, a = np.zeros((len(change), rank), np.float32), np.zeros((rank, change.shape[1]), np.float32)
    b[:, :kept], a[:kept] = left[:, :kept] * root, right[:kept] * root[:, None]
    return b, a, float(np.square(change - b @ a, dtype=np.float64).sum())


def _config(base: str, adapter: Adapter, modules: list[str]) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": int(adapter.alpha) if adapter.alpha == int(adapter.alpha) else adapter.alpha,
        "lora_dropout": 0.0,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
