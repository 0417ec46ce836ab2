"""What fira 1.0.2 does, kept in fira.npz with the projectors it took.

pip install torch --index-url https://download.pytorch.org/whl/cpu
pip install transformers && pip install --no-deps fira==1.0.2
python -m tests.golden.make_fira
"""

from pathlib import Path

import numpy as np
import torch
from fira import FiraAdamW

from tests.reference.gradient_sequence import FAMILIES, GAP, STEPS, gradients, weights

LR, DECAY = 0.01, 0.1
PROJECTED = {"rank": 4, "update_proj_gap": GAP, "alpha": 0.25, "proj_type": "std"}


def trajectory(family):
    start = {key: torch.nn.Parameter(torch.tensor(w)) for key, w in weights().items()}
    matrices = [w for w in start.values() if w.ndim == 2]
    rest = [w for w in start.values() if w.ndim != 2]
    groups = [{"params": rest}, {"params": matrices, **PROJECTED}]
    tx = FiraAdamW(groups, lr=LR, weight_decay=DECAY, no_deprecation_warning=True)
    kept = {}
    for step in range(STEPS):
        for key, gradient in gradients(family, step).items():
            start[key].grad = torch.tensor(gradient)
        tx.step()
        for key, w in start.items():
            if step % GAP == 0 and w.ndim == 2:
                basis = tx.state[w]["projector"].ortho_matrix
                kept[f"{family}/projector/{step}/{key}"] = basis.numpy().copy()
            if (step + 1) % GAP == 0:
                kept[f"{family}/{step + 1}/{key}"] = w.detach().numpy().copy()
    return kept


def main():
    out = {}
    for family in FAMILIES:
        out |= trajectory(family)
    np.savez_compressed(Path(__file__).with_name("fira.npz"), **out)


if __name__ == "__main__":
    main()
