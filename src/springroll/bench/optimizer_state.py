"""Bytes of optimizer state for LLaMA from 60M to 7B, counted from shapes, and published figures.

    springroll bench optimizer_state

Nothing is allocated. The rank is a quarter of the hidden size. Projected are the matrices of the
blocks; embedding, head and norms have Adam's full state, in the bits of the other moments. `ours`
and `baseline` are the bytes for the projected matrices alone: GaLore with moments and bases in 8
bits, and AdamW in bfloat16, with which the GaLore paper (arXiv 2403.03507) compares where it claims
to save up to 82.5 % of optimizer state. `shares` has whole models, against each baseline by name:
AdamW in bfloat16, in float32, and Adam in 8 bits.

Published are gigabytes of weights and states in bfloat16 (APOLLO, arXiv 2412.05270, table 2); the
table beside it has weights in bfloat16 and states as counted here.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from springroll.bench import measure
from springroll.models.decoder import Decoder, decoder
from springroll.models.decoder_config import CONFIGS
from springroll.quant.quantize_state import quantize_state
from springroll.subspace.apollo import apollo, apollo_mini
from springroll.subspace.fira import fira
from springroll.subspace.galore import galore
from springroll.subspace.hf_adam import adam_direction
from springroll.subspace.lowgrad import lowgrad
from springroll.subspace.optimizers import StateBits
from springroll.subspace.stored_basis import BasisBits
from springroll.trees import PyTree, named_leaves, tree_bytes, tree_numbers

MODELS = ("llama-60m", "llama-130m", "llama-350m", "llama-1b", "llama-7b")
# GB of weights and states, bfloat16; for 7B of states alone.
PUBLISHED = {
    "llama-60m": {"adamw": 0.36, "galore": 0.24, "fira": 0.24, "apollo": 0.24, "apollo_mini": 0.12},
    "llama-130m": {
        "adamw": 0.76,
        "galore": 0.52,
        "fira": 0.52,
        "apollo": 0.52,
        "apollo_mini": 0.25,
    },
    "llama-350m": {
        "adamw": 2.06,
        "galore": 1.22,
        "fira": 1.22,
        "apollo": 1.22,
        "apollo_mini": 0.69,
    },
    "llama-1b": {"adamw": 7.80, "galore": 4.38, "fira": 4.38, "apollo": 4.38, "apollo_mini": 2.60},
}
PUBLISHED_STATE = {
    "llama-7b": {"adamw_8bit": 13.0, "galore_8bit": 4.9, "apollo": 1.6, "apollo_mini": 0.0}
}
TARGET = 0.175  # of bfloat16 AdamW's state, as published
BASELINES = {
    "AdamW in bfloat16": "adamw_bfloat16",
    "AdamW in float32": "adamw",
    "Adam in 8 bits": "adamw_8bit",
}
# GaLore by the bits of its moments and of its bases.
GALORE: dict[str, tuple[StateBits, BasisBits]] = {
    "galore_8bit_bases16": (8, 16),
    "galore_8bit": (8, 8),
    "galore_8bit_bases4": (8, 4),
    "galore_4bit": (4, 4),
}


def is_projected(path: str) -> bool:
    return path.startswith("layers/") and path.endswith("_proj")


def optimizers(rank: int) -> dict[str, optax.GradientTransformation]:
    """The transformations that see full gradients."""
    where: dict[str, Any] = dict(rows="out", select=is_projected)
    coded = lambda bits, tx: quantize_state(tx, bits)
    adam = adam_direction()
    return {
        "adamw": optax.adamw(1e-3),
        "adamw_8bit": coded(8, optax.adamw(1e-3)),
        "galore": galore(optax.adamw(1e-3), rank, **where),
        **{
            name: galore(coded(bits, optax.adamw(1e-3)), rank, basis_bits=bases, **where)
            for name, (bits, bases) in GALORE.items()
        },
        "fira": fira(1e-3, rank, **where),
        "fira_8bit": fira(1e-3, rank, direction=coded(8, adam), basis_bits=8, **where),
        "apollo": apollo(1e-3, rank, **where),
        "apollo_8bit": apollo(1e-3, rank, direction=coded(8, adam), **where),
        "apollo_mini": apollo_mini(1e-3, **where),
    }


def lowgrad_state(model: Decoder, params: PyTree, rank: int, bits: StateBits) -> PyTree:
    """What the trainer keeps besides the weights: projectors, S and the moments of S.

    bits: per number of moments and bases; S is float32.
    """
    inner = optax.adamw(1e-3) if bits == 32 else quantize_state(optax.adamw(1e-3), bits)
    tokens = jax.ShapeDtypeStruct((1, 257), jnp.int32)
    trainer = lowgrad(
        model.loss, params, inner, tokens, rank=rank, select=is_projected, basis_bits=bits
    )
    state = jax.eval_shape(trainer.init, params)
    return state.projectors, state.low, state.opt


def states(name: str, rank: int | None = None) -> dict[str, PyTree]:
    """Optimizer -> its state as shapes."""
    model = decoder(CONFIGS[name])
    params = jax.eval_shape(model.init, jax.random.key(0))
    rank = rank or model.config.hidden // 4
    shapes = {key: jax.eval_shape(tx.init, params) for key, tx in optimizers(rank).items()}
    half = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, jnp.bfloat16), params)
    shapes["adamw_bfloat16"] = jax.eval_shape(optax.adamw(1e-3).init, half)
    shapes["lowgrad"] = lowgrad_state(model, params, rank, 32)
    shapes["lowgrad_8bit"] = lowgrad_state(model, params, rank, 8)
    return shapes


def projected_part(state: PyTree) -> int:
    """Bytes of those arrays of a state that belong to projected matrices."""
    named = named_leaves(state).items()
    return sum(tree_bytes(x) for path, x in named if "layers/" in path and "_proj" in path)


def run(name: str = "llama-60m", rank: int | None = None) -> measure.Result:
    """The table of one model, and the ratio for the projected matrices."""
    shapes = states(name, rank)
    model = decoder(CONFIGS[name])
    weights = tree_numbers(jax.eval_shape(model.init, jax.random.key(0)))
    parts = {key: projected_part(state) for key, state in shapes.items()}
    ours, baseline = parts["galore_8bit"], parts["adamw_bfloat16"]
    assert ours <= TARGET * baseline, f"{name}: {ours} of {baseline} bytes"
    whole = {key: tree_bytes(state) for key, state in shapes.items()}
    gigabytes = lambda size: float(f"{size / 1e9:.4g}")
    kept = [*GALORE, "lowgrad_8bit", "apollo_8bit"]
    return measure.record(
        "optimizer_state",
        ours=gigabytes(ours),
        baseline=gigabytes(baseline),
        ratio=ours / baseline,
        shares={
            said: {key: round(whole[key] / whole[against], 4) for key in kept}
            for said, against in BASELINES.items()
        },
        unit="GB of state for the projected matrices; ratio: share of bfloat16 AdamW's",
        target=f"ratio <= {TARGET}, as published",
        model=name,
        rank=rank or model.config.hidden // 4,
        parameters=weights,
        state_gb={key: gigabytes(size) for key, size in whole.items()},
        with_bfloat16_weights_gb={
            key: gigabytes(2 * weights + size) for key, size in whole.items()
        },
        published_with_weights_gb=PUBLISHED.get(name, {}),
        published_state_gb=PUBLISHED_STATE.get(name, {}),
    )


def main() -> None:
    measure.Arguments(description=str(__doc__).splitlines()[0]).parse_args()
    for name in MODELS:
        measure.report(run(name))


if __name__ == "__main__":
    main()
