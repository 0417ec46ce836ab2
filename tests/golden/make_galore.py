"""What galore-torch 1.0 does, kept in galore.npz.

    pip install torch --index-url https://download.pytorch.org/whl/cpu
    pip install transformers && pip install --no-deps galore-torch==1.0
    python -m tests.golden.make_galore

Signs of singular vectors are made canonical before GaLore sees them: the largest entry positive.
"""

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.reference.gradient_sequence import FAMILIES, GAP, STEPS, gradients, weights

SIDES = ("std", "reverse_std", "left", "right", "full")
RANK, LR, SCALE, DECAY = 4, 0.01, 0.25, 0.1
KEEP_AFTER = (GAP, STEPS)


def canonical(svd):
    def wrapped(*args, **kwargs):
        u, s, vh = svd(*args, **kwargs)
        sign = lambda x: torch.sign(x.gather(0, x.abs().argmax(0, keepdim=True)))
        return u * sign(u), s, vh * sign(vh.T).T

    return wrapped


def trajectory(optimizer, side, family):
    start = {name: torch.nn.Parameter(torch.tensor(w)) for name, w in weights().items()}
    matrices = [w for w in start.values() if w.ndim == 2]
    rest = [w for w in start.values() if w.ndim != 2]
    projected = {"rank": RANK, "update_proj_gap": GAP, "scale": SCALE, "proj_type": side}
    groups = [{"params": rest}, {"params": matrices, **projected}]
    tx = optimizer(groups, lr=LR, weight_decay=DECAY, no_deprecation_warning=True)
    kept = {}
    for step in range(STEPS):
        for name, gradient in gradients(family, step).items():
            start[name].grad = torch.tensor(gradient)
        tx.step()
        if step + 1 in KEEP_AFTER:
            for name, w in start.items():
                kept[f"{family}/{side}/{step + 1}/{name}"] = w.detach().numpy().copy()
    return kept


def released_adamw():
    """GaLoreAdamW, without the 8-bit optimizers that its module also imports."""
    for missing in ("bitsandbytes", "bitsandbytes.optim", "bitsandbytes.optim.optimizer"):
        module: Any = sys.modules.setdefault(missing, types.ModuleType(missing))
        module.functional = None
        module.Optimizer2State = object
    from galore_torch import GaLoreAdamW

    return GaLoreAdamW


def main():
    optimizer = released_adamw()
    torch.linalg.svd = canonical(torch.linalg.svd)
    out = {}
    for family in FAMILIES:
        for side in SIDES:
            out |= trajectory(optimizer, side, family)
    np.savez_compressed(Path(__file__).with_name("galore.npz"), **out)


if __name__ == "__main__":
    main()
