"""Bases of subspaces in 8 and 4 bits: what is left of them, and what training loses.

    python -m bench.basis_bits                  the bases alone, seconds
    python -m bench.basis_bits --steps 300      and GaLore on `llama-1m` with each, minutes

A basis of 1024 x 256 follows a gradient whose singular values fall off by a power law. Of each way
to keep it: the range of its singular values (1 when orthonormal), the overlap of its subspace with
the exact one, and the share of the gradient's energy that it keeps, as a share of what the exact
basis keeps; and the last again for the decoded basis made orthonormal.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from springroll.bench import measure
from springroll.bench.lowgrad_quality import curve
from springroll.subspace.basis import captured, orthonormal, overlap, power_step, random_basis
from springroll.subspace.stored_basis import BasisBits, floats, stored
from springroll.train.build import build
from springroll.train.config import TrainConfig

M, N, RANK = 1024, 1536, 256
BITS: tuple[BasisBits, ...] = (16, 8, 4)


def gradient(decay: float = 0.5) -> jax.Array:
    """(M, N) with singular values 1, 2^-decay, 3^-decay, ..., up to noise."""
    keys = jax.random.split(jax.random.key(0))
    values = jnp.arange(1.0, M + 1) ** -decay
    return (jax.random.normal(keys[0], (M, M)) * values[None]) @ jax.random.normal(keys[1], (M, N))


def geometry() -> dict[str, dict[str, float]]:
    """Bits -> figures of a basis that is kept so."""
    g, exact = gradient(), random_basis(jax.random.key(1), (M, RANK))
    for _ in range(3):
        exact = power_step(g, exact)
    best = captured(g, exact)
    found = {}
    for bits in BITS:
        kept = floats(stored(exact, bits)).astype(jnp.float32)
        clean = orthonormal(kept)
        values = np.linalg.svd(kept, compute_uv=False)
        found[str(bits)] = {
            "smallest": float(values.min()),
            "largest": float(values.max()),
            "overlap": float(overlap(clean, exact)),
            "captured": float(captured(g, kept) / best),
            "captured_orthonormal": float(captured(g, clean) / best),
        }
    return found


def trained(model: str, steps: int, seed: int, bits: BasisBits) -> float:
    """Validation bits per byte of GaLore after so many steps, moments in 8 bits."""
    options: dict[str, Any] = {"batch": 8, "sequence": 128, "valid_streams": 64}
    config = TrainConfig(
        model=model,
        optimizer="galore",
        state_bits=8,
        basis_bits=bits,
        refresh_interval=50,
        seed=seed,
        generations=steps,
        schedule_steps=steps,
        valid_tokens=128,
        **options,
    )
    return curve(build(config).task, [0, steps])[-1]


def run(steps: int = 0, model: str = "llama-1m", seeds: int = 2) -> measure.Result:
    """The figures; `ours` and `baseline` are of 8-bit bases and of exact ones."""
    found = geometry()
    curves = {
        str(bits): [round(trained(model, steps, seed, bits), 4) for seed in range(seeds)]
        for bits in ((32, 8, 4) if steps else ())
    }
    ours = found["8"]["captured_orthonormal"]
    return measure.record(
        "basis_bits",
        ours=ours,
        baseline=1.0,
        ratio=ours,
        unit="energy of the gradient that the subspace keeps, relative to the exact basis",
        bases={bits: {k: round(v, 4) for k, v in row.items()} for bits, row in found.items()},
        model=model,
        steps=steps,
        valid_bits_per_byte=curves,
    )


def main() -> None:
    parser = measure.Arguments(description=str(__doc__).splitlines()[0])
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--model", default="llama-1m")
    options = parser.parse_args()
    measure.report(run(options.steps, options.model))


if __name__ == "__main__":
    main()
