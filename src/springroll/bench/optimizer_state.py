"""Bytes of optimizer state for LLaMA from 60M to 7B, counted from shapes, and published figures.

    springroll bench optimizer_state

Nothing is allocated. The rank is a quarter of the hidden size. Projected are the matrices of the
blocks; embedding, head and norms always have Adam's full state. `ours` and `baseline` are the bytes
for the projected matrices alone: GaLore with moments in 8 bits and bases in bfloat16, and AdamW in
float32. The GaLore paper (arXiv 2403.03507) claims to save up to 82.5 % of optimizer state. It
compares with AdamW in bfloat16; `share_of_bfloat16_adamw` does so too, for the projected matrices
and for the whole model.

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
PUBLISHED_SHARE = 0.175  # of bfloat16 AdamW's
TARGET = 0.175  # of float32 AdamW's


def is_projected(path: str) -> bool:
    return path.startswith("layers/") and path.endswith("_proj")


def optimizers(rank: int) -> dict[str, optax.GradientTransformation]:
    """The transformations that see full gradients."""
    where: dict[str, Any] = dict(rows="out", select=is_projected)
    half = where | dict(basis_dtype=jnp.bfloat16)
    eight = lambda tx: quantize_state(tx, 8)
    adam = adam_direction()
    return {
        "adamw": optax.adamw(1e-3),
        "adamw_8bit": eight(optax.adamw(1e-3)),
        "galore": galore(optax.adamw(1e-3), rank, **where),
        "galore_8bit": galore(eight(optax.adamw(1e-3)), rank, **half),
        "galore_8bit_f32": galore(eight(optax.adamw(1e-3)), rank, **where),
        "fira": fira(1e-3, rank, **where),
        "fira_8bit": fira(1e-3, rank, direction=eight(adam), **half),
        "apollo": apollo(1e-3, rank, **where),
        "apollo_8bit": apollo(1e-3, rank, direction=eight(adam), **where),
        "apollo_mini": apollo_mini(1e-3, **where),
    }


def lowgrad_state(model: Decoder, params: PyTree, rank: int, bits: int | None) -> PyTree:
    """What the trainer keeps besides the weights: projectors, S and the moments of S."""
    inner = optax.adamw(1e-3) if bits is None else quantize_state(optax.adamw(1e-3), bits)
    tokens = jax.ShapeDtypeStruct((1, 257), jnp.int32)
    trainer = lowgrad(model.loss, params, inner, tokens, rank=rank, select=is_projected)
    state = jax.eval_shape(trainer.init, params)
    return state.projectors, state.low, state.opt


def states(name: str, rank: int | None = None) -> dict[str, PyTree]:
    """Optimizer -> its state as shapes."""
    model = decoder(CONFIGS[name])
    params = jax.eval_shape(model.init, jax.random.key(0))
    rank = rank or model.config.hidden // 4
    shapes = {key: jax.eval_shape(tx.init, params) for key, tx in optimizers(rank).items()}
    for key, bits in (("lowgrad", None), ("lowgrad_8bit", 8)):
        shapes[key] = lowgrad_state(model, params, rank, bits)
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
    ours, baseline = projected_part(shapes["galore_8bit"]), projected_part(shapes["adamw"])
    assert ours <= TARGET * baseline, f"{name}: {ours} of {baseline} bytes"
    gigabytes = lambda size: float(f"{size / 1e9:.4g}")
    return measure.record(
        "optimizer_state",
        ours=gigabytes(ours),
        baseline=gigabytes(baseline),
        ratio=ours / baseline,
        ratio_with_float32_bases=projected_part(shapes["galore_8bit_f32"]) / baseline,
        share_of_bfloat16_adamw={
            "projected": 2 * ours / baseline,
            "model": 2 * tree_bytes(shapes["galore_8bit"]) / tree_bytes(shapes["adamw"]),
            "published": PUBLISHED_SHARE,
        },
        unit="GB of state for the projected matrices; ratio: share of AdamW's that is left",
        target=f"ratio <= {TARGET}",
        model=name,
        rank=rank or model.config.hidden // 4,
        parameters=weights,
        state_gb={key: gigabytes(tree_bytes(state)) for key, state in shapes.items()},
        with_bfloat16_weights_gb={
            key: gigabytes(2 * weights + tree_bytes(state)) for key, state in shapes.items()
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
