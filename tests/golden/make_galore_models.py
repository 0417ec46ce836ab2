"""What galore-torch 1.0 makes of models of flax NNX, Equinox and Haiku, kept in galore_models.npz.

Weights and gradients cross between JAX and PyTorch at every step; the matrices that `sr.discover`
finds are given to GaLoreAdamW as PyTorch would have them, (outputs, inputs).

    pip install torch --index-url https://download.pytorch.org/whl/cpu
    pip install transformers equinox dm-haiku && pip install --no-deps galore-torch==1.0
    python -m tests.golden.make_galore_models
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

import springroll as sr
from springroll.subspace.matrix_view import matrix_views
from springroll.trees import named_leaves
from tests.golden.make_galore import canonical, released_adamw
from tests.reference.galore_models import DECAY, GAP, LR, RANK, SCALE, SIDES, STEPS
from tests.reference.other_models import MODELS, batch, problem


def trajectory(optimizer: Any, name: str, side: str) -> dict[str, np.ndarray]:
    """The last weights, by path."""
    params, loss = problem(name)
    views = matrix_views(params, roles=sr.discover(loss, params, *batch(0)))
    leaves, tree = jax.tree.flatten(params)
    there = lambda view, x: np.array(view.matrix(x).T if view else x)
    back = lambda view, w: view.restore(w.T) if view else w
    weights = [
        torch.nn.Parameter(torch.tensor(there(v, x))) for v, x in zip(views, leaves, strict=True)
    ]
    projected = {"rank": RANK, "update_proj_gap": GAP, "scale": SCALE, "proj_type": side}
    groups = [
        {"params": [w for w, v in zip(weights, views, strict=True) if not v]},
        {"params": [w for w, v in zip(weights, views, strict=True) if v], **projected},
    ]
    tx = optimizer(groups, lr=LR, weight_decay=DECAY, no_deprecation_warning=True)
    here = lambda: tree.unflatten(
        [
            back(v, jax.numpy.asarray(w.detach().numpy()))
            for v, w in zip(views, weights, strict=True)
        ]
    )
    gradient = jax.jit(jax.grad(loss))
    for step in range(STEPS):
        grads = jax.tree.leaves(gradient(here(), *batch(step)))
        for view, weight, grad in zip(views, weights, grads, strict=True):
            weight.grad = torch.tensor(there(view, grad))
        tx.step()
    return {path: np.asarray(w) for path, w in named_leaves(here()).items()}


def main() -> None:
    torch.linalg.svd = canonical(torch.linalg.svd)
    optimizer, out = released_adamw(), {}
    for name in MODELS:
        for side in SIDES:
            for path, weight in trajectory(optimizer, name, side).items():
                out[f"{name}/{side}/{path}"] = weight
    np.savez_compressed(Path(__file__).with_name("galore_models.npz"), **out)


if __name__ == "__main__":
    main()
