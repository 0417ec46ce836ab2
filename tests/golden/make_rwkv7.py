"""Golden logits and states of a tiny random RWKV-7, from the package `rwkv` (torch, CPU, float32).

    pip install torch rwkv==0.8.32 numpy
    python tests/golden/make_rwkv7.py        # writes rwkv7.npz and rwkv7_saved.pth beside this file

Weights come from `rwkv7_by_formula`, by their names in a checkpoint of BlinkDL; only tokens,
logits and the last state are stored. The second file is what torch.save makes of a few small
tensors. Made with rwkv 0.8.32, torch 2.13.0.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from tests.golden.rwkv7_by_formula import rwkv7_checkpoint

os.environ["RWKV_V7_ON"] = "1"
os.environ["RWKV_JIT_ON"] = "0"

LAYERS = 3
TIME = 40


def main() -> None:
    from rwkv.model import RWKV

    checkpoint = {name: torch.from_numpy(w) for name, w in rwkv7_checkpoint(LAYERS).items()}
    tokens = np.random.default_rng(0).integers(0, len(checkpoint["emb.weight"]), TIME)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny"
        torch.save(checkpoint, f"{path}.pth")
        model = RWKV(model=str(path), strategy="cpu fp32")
    logits, state = model.forward(tokens.tolist(), None, full_output=True)
    results = {
        "tokens": tokens.astype(np.int32),
        "logits": logits.numpy(),
        "time": torch.stack(state[0::3]).numpy(),
        "wkv": torch.stack(state[1::3]).numpy(),
        "channel": torch.stack(state[2::3]).numpy(),
    }
    print({name: (x.shape, x.std()) for name, x in results.items()})
    np.savez_compressed(Path(__file__).with_name("rwkv7.npz"), **results)
    torch.save(saved(), Path(__file__).with_name("rwkv7_saved.pth"))


def saved() -> dict[str, torch.Tensor]:
    """Tensors of every type that checkpoints have, with strides, offsets and a shared storage."""
    numbers = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    return {
        "whole": numbers,
        "turned": numbers.t(),
        "part": numbers[1:3, 2:],
        "short": numbers.bfloat16(),
        "half": numbers.half()[2],
        "double": numbers.double().reshape(1, 1, 24),
        "one": torch.tensor(7.0),
    }


if __name__ == "__main__":
    main()
