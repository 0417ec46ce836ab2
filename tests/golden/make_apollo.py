"""What apollo-torch 1.0.3 does, kept in apollo.npz with the projectors it drew.

pip install torch --index-url https://download.pytorch.org/whl/cpu
pip install transformers && pip install --no-deps apollo-torch==1.0.3
python -m tests.golden.make_apollo
"""

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.reference.gradient_sequence import GAP, STEPS, gradients, weights

LR, DECAY = 0.01, 0.1
VARIANTS = {
    "apollo": {"rank": 4, "scale": 1.5, "scale_type": "channel"},
    "mini": {"rank": 1, "scale": 128.0, "scale_type": "tensor"},
}


def trajectory(optimizer, name, scale_front):
    start = {key: torch.nn.Parameter(torch.tensor(w)) for key, w in weights().items()}
    matrices = [w for w in start.values() if w.ndim == 2]
    rest = [w for w in start.values() if w.ndim != 2]
    projected = {"update_proj_gap": GAP, "proj": "random", "proj_type": "std", **VARIANTS[name]}
    groups = [{"params": rest}, {"params": matrices, **projected}]
    tx = optimizer(groups, lr=LR, weight_decay=DECAY, scale_front=scale_front)
    kept = {}
    for step in range(STEPS):
        for key, gradient in gradients("separated", step).items():
            start[key].grad = torch.tensor(gradient)
        tx.step()
        for key, w in start.items():
            if step % GAP == 0 and w.ndim == 2:
                basis = tx.state[w]["projector"].ortho_matrix
                kept[f"{name}/projector/{step}/{key}"] = basis.numpy().copy()
            if (step + 1) % GAP == 0:
                kept[f"{name}/{scale_front}/{step + 1}/{key}"] = w.detach().numpy().copy()
    return kept


def main():
    for missing in (
        "bitsandbytes",
        "bitsandbytes.functional",
        "bitsandbytes.optim",
        "bitsandbytes.optim.optimizer",
    ):
        module: Any = sys.modules.setdefault(missing, types.ModuleType(missing))
        module.Optimizer2State = object
    from apollo_torch import APOLLOAdamW

    out = {}
    for name in VARIANTS:
        for scale_front in (False, True):
            out |= trajectory(APOLLOAdamW, name, scale_front)
    np.savez_compressed(Path(__file__).with_name("apollo.npz"), **out)


if __name__ == "__main__":
    main()
