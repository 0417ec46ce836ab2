"""Weights and gradients from a formula, the same on both sides of a comparison with other code."""

import numpy as np

SHAPES = {"tall": (16, 12), "wide": (12, 16), "vector": (6,)}
FAMILIES = ("separated", "gaussian")
STEPS, GAP = 45, 15
# About as long as gradients are in practice. On the step of an SVD, UᵀGV is diagonal but for
# rounding, which Adam takes for a signal unless it is small beside an epsilon of 1e-6.
SIZE = 0.002


def weights() -> dict[str, np.ndarray]:
    """float32, (out, in) as in PyTorch."""
    return {
        name: (0.1 * np.random.RandomState(7 + i).standard_normal(shape)).astype(np.float32)
        for i, (name, shape) in enumerate(SHAPES.items())
    }


def gradients(family: str, step: int) -> dict[str, np.ndarray]:
    """float32. "separated": singular values that halve, and a little noise; "gaussian": noise."""
    return {
        name: (SIZE * _gradient(family, shape, 1000 * (i + 1), step)).astype(np.float32)
        for i, (name, shape) in enumerate(SHAPES.items())
    }


def _gradient(family: str, shape: tuple[int, ...], seed: int, step: int) -> np.ndarray:
    noise = np.random.RandomState(seed + step + 1).standard_normal(shape)
    if family == "gaussian" or len(shape) < 2:
        return noise
    fixed = np.random.RandomState(seed)
    k = min(shape)
    left, right = fixed.standard_normal((shape[0], k)), fixed.standard_normal((k, shape[1]))
    drift = 1 + 0.3 * np.random.RandomState(seed + step + 1).standard_normal(k)
    return (left * (drift * 0.5 ** np.arange(k))) @ right + 0.02 * noise
