"""How far optimizer moments in 8 and 4 bits are off: root codes beside linear ones.

    python -m bench.state_quantization

Moments as training leaves them: heavy-tailed gradients (Student t, 3 degrees of freedom) whose size
differs between rows and columns, averaged as Adam does, with decays of 0.9 and 0.999. Linear codes
have the same blocks and as many levels. Of first moments the relative rms error counts, of second
ones that of sqrt(v), which is divided by: the median over all numbers, and how many are off by more
than a factor of two (most of them are zero in linear codes, and the step explodes).
"""

from typing import Any

import numpy as np

from springroll.bench import measure

BLOCK = {8: 256, 4: 128}


def run(rows: int = 256, columns: int = 1024, steps: int = 200, seed: int = 0) -> dict[str, Any]:
    """Errors by bits and kind of code; `ours` and `baseline` are those of sqrt(v) in 8 bits."""
    m, v = moments(rows, columns, steps, seed)
    table = {
        f"{bits} bits, {name}": errors(coder, bits, m, v)
        for bits in BLOCK
        for name, coder in (("root", root), ("linear", linear))
    }
    ours, baseline = (table[f"8 bits, {name}"]["second"] for name in ("root", "linear"))
    return measure.record(
        "state_quantization",
        ours=ours,
        baseline=baseline,
        ratio=baseline / ours,
        unit="median relative error of sqrt(v), 8 bits; baseline: linear codes",
        table=table,
    )


def moments(rows: int, columns: int, steps: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Adam's moments (rows, columns) float32 of gradients with heavy tails."""
    rng = np.random.default_rng(seed)
    size = np.exp(rng.normal(0, 1, (rows, 1)) + rng.normal(0, 1, (1, columns)))
    m, v = np.zeros((rows, columns)), np.zeros((rows, columns))
    for _ in range(steps):
        g = size * rng.standard_t(3, (rows, columns))
        m += 0.1 * (g - m)
        v += 0.001 * (g * g - v)
    return m.astype(np.float32), v.astype(np.float32)


def errors(coder: Any, bits: int, m: np.ndarray, v: np.ndarray) -> dict[str, float]:
    first, second = coder(m, bits, True), coder(v, bits, False)
    ratio = np.sqrt(second / v)
    return {
        "first": float(np.sqrt(np.mean((first - m) ** 2) / np.mean(m**2))),
        "second": float(np.median(np.abs(ratio - 1))),
        "off_by_two": float(np.mean((ratio > 2) | (ratio < 0.5))),
    }


def root(x: np.ndarray, bits: int, signed: bool) -> np.ndarray:
    """What is left of x after `quant.root_companding`."""
    import jax.numpy as jnp

    from springroll.quant.root_companding import dequantize, quantize

    q = quantize(jnp.asarray(x), bits=bits, block=BLOCK[bits], signed=signed)
    return np.asarray(dequantize(q))


def linear(x: np.ndarray, bits: int, signed: bool) -> np.ndarray:
    """What is left of x after x' = s round(k x / s) / k, in the same blocks."""
    levels = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    blocks = x.reshape(-1, BLOCK[bits])
    scale = np.abs(blocks).max(-1, keepdims=True)
    return (np.round(blocks / scale * levels) / levels * scale).reshape(x.shape)


def main() -> None:
    measure.report(run())


if __name__ == "__main__":
    main()
