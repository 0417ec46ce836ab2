"""Weights that any machine can compute again from their names, so that golden files stay small."""

import zlib

import numpy as np


def weight(name: str, shape: tuple[int, ...], scale: float = 0.3) -> np.ndarray:
    """Numbers in [-scale, scale), float32, from a hash of (name, position). Norms lie around 1."""
    seed = np.uint64(zlib.crc32(name.encode()))
    x = np.arange(int(np.prod(shape)), dtype=np.uint64) + (seed << np.uint64(32))
    with np.errstate(over="ignore"):
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    unit = (x >> np.uint64(40)).astype(np.float64) / 2**23 - 1
    centre = 1.0 if "norm" in name else 0.0
    return (centre + scale * unit).astype(np.float32).reshape(shape)
