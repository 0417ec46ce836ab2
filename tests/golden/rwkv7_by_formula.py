"""A checkpoint of a tiny RWKV-7 under BlinkDL's names, computed from the names; no torch."""

import numpy as np

from tests.golden.weights_by_formula import weight

VOCAB, HIDDEN, HEAD, FFN = 48, 64, 32, 96
RANKS = {"w": 8, "a": 8, "v": 4, "g": 12}
# Vectors that are not spread around 0: (middle, spread).
AROUND = {"x_": (0.5, 0.5), "w0": (-1.0, 3.0), "k_k": (0.7, 0.3), "k_a": (1.0, 0.3)}


def rwkv7_checkpoint(layers: int) -> dict[str, np.ndarray]:
    """Every tensor by name, in the shapes in which checkpoints store them."""
    found = {
        "emb.weight": _matrix("emb.weight", (VOCAB, HIDDEN), 1.0),
        "head.weight": _matrix("head.weight", (VOCAB, HIDDEN), 1.7 / HIDDEN**0.5),
    }
    norms = ["blocks.0.ln0", "ln_out"]
    for i in range(layers):
        att, ffn = f"blocks.{i}.att", f"blocks.{i}.ffn"
        norms += [f"blocks.{i}.ln1", f"blocks.{i}.ln2", f"{att}.ln_x"]
        vectors = [f"{att}.{name}" for name in ("k_k", "k_a", "w0", "a0", "v0")]
        vectors += [f"{att}.x_{name}" for name in "rwkvag"] + [f"{ffn}.x_k"]
        found |= {name: _vector(name)[None, None] for name in vectors}
        found[f"{att}.r_k"] = weight(f"{att}.r_k", (HIDDEN // HEAD, HEAD))
        for name, rank in RANKS.items():
            for part, shape in (("1", (HIDDEN, rank)), ("2", (rank, HIDDEN))):
                path = f"{att}.{name}{part}"
                found[path] = _matrix(path, shape, 1.7 / shape[0] ** 0.5)
        square = (HIDDEN, HIDDEN)
        shapes = {f"{att}.{n}": square for n in ("receptance", "key", "value", "output")}
        shapes |= {f"{ffn}.key": (FFN, HIDDEN), f"{ffn}.value": (HIDDEN, FFN)}
        for path, shape in shapes.items():
            found[f"{path}.weight"] = _matrix(path, shape, 1.7 / shape[1] ** 0.5)
    for name in norms:
        found[f"{name}.weight"] = np.float32(1) + weight(f"{name}.weight", (HIDDEN,))
        found[f"{name}.bias"] = weight(f"{name}.bias", (HIDDEN,))
    return found


def _matrix(name: str, shape: tuple[int, ...], scale: float) -> np.ndarray:
    return weight(name, shape, scale)


def _vector(name: str) -> np.ndarray:
    last = name.rsplit(".", 1)[1]
    middle, spread = AROUND.get(last, AROUND["x_"] if last.startswith("x_") else (0.0, 0.3))
    return np.float32(middle) + weight(name, (HIDDEN,), spread)
