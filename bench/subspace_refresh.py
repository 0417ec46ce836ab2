"""A new basis by one warm power step beside the full SVD that GaLore takes.

    python -m bench.subspace_refresh

The gradient is that of a dense layer, G = Xᵀ dY, with activations and output gradients of power-law
spectra. The basis in use is the best one of the batch before. What counts besides the time is how
much of the energy of G that the best subspace keeps the new one keeps, `energy`. `in_backward` is
the same step from X and dY, as the trainer takes it: G is never formed. Takes three minutes.

The energy depends on the spectrum. Strengths fall as i^-0.75 here, so that the basis of the batch
before keeps 0.93 to 0.98; at i^-0.5, where it keeps 0.65 to 0.82, one step keeps 0.996 at a quarter
of the size and 0.976 at a sixteenth (size 1024).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from springroll.bench import measure
from springroll.subspace.basis import captured, orthonormal, power_step, svd_basis

SIZE, TOKENS, DECAY = 4096, 4096, 0.75
TARGETS = {1024: 10, 256: 60}  # times faster than the SVD, by rank
ENERGY = 0.99


def batch(key: Array, size: int, tokens: int, decay: float) -> tuple[Array, Array]:
    """X and dY (tokens, size); directions are the same in every batch, their strength decays."""
    strength = jnp.arange(1.0, size + 1) ** -decay

    def side(seed: int) -> Array:
        mix = jax.random.normal(jax.random.key(seed), (size, size)) / jnp.sqrt(jnp.float32(size))
        own = jax.random.normal(jax.random.fold_in(key, seed), (tokens, size))
        return (own * strength[None]) @ mix

    return side(0), side(1)


def in_backward(x: Array, dy: Array, basis: Array) -> Array:
    """orth(Xᵀ dY (Xᵀ dY)ᵀ P) from the right: 6 tokens size rank FLOPs and no G."""
    small = (x @ basis).T @ dy
    return orthonormal(x.T @ (dy @ small.T), near=basis)


def run(
    ranks: Sequence[int] = tuple(TARGETS),
    size: int = SIZE,
    tokens: int = TOKENS,
    repeats: int = 3,
    decay: float = DECAY,
) -> list[dict[str, Any]]:
    """Median seconds of a refresh for each rank: ours, and a full SVD, the same for all."""
    draw = jax.jit(batch, static_argnums=(1, 2, 3))
    svd = jax.jit(functools.partial(svd_basis, rank=max(ranks)))
    steps = {"power": jax.jit(power_step), "in_backward": jax.jit(in_backward)}
    x, dy = draw(jax.random.key(0), size, tokens, decay)
    old = svd(x.T @ dy)  # of the batch before
    x, dy = draw(jax.random.key(1), size, tokens, decay)
    arrays = {"power": (x.T @ dy,), "in_backward": (x, dy)}
    found: dict[str, Array] = {}

    def keep(name: str, basis: Array) -> Array:
        found[name] = basis
        return basis

    variants: dict[str, Any] = {
        f"{name} {rank}": lambda name=name, rank=rank: keep(
            f"{name} {rank}", steps[name](*arrays[name], old[:, :rank])
        )
        for name in steps
        for rank in ranks
    }
    for variant in variants.values():
        jax.block_until_ready(variant())  # compiled; the SVD was for the old basis
    variants["svd"] = lambda: keep("svd", svd(*arrays["power"]))
    seconds = measure.medians(measure.interleaved(variants, repeats, warmup=0))

    def result(rank: int) -> dict[str, Any]:
        energy = lambda basis: float(captured(arrays["power"][0], basis[:, :rank]))
        best = energy(found["svd"])
        return measure.record(
            "subspace_refresh",
            ours=seconds[f"power {rank}"],
            baseline=seconds["svd"],
            ratio=seconds["svd"] / seconds[f"power {rank}"],
            unit="seconds per refresh",
            rank=rank,
            size=size,
            tokens=tokens,
            decay=decay,
            in_backward_seconds=seconds[f"in_backward {rank}"],
            energy={
                "power": round(energy(found[f"power {rank}"]) / best, 4),
                "in_backward": round(energy(found[f"in_backward {rank}"]) / best, 4),
                "stale": round(energy(old) / best, 4),
            },
            target=f"ratio >= {TARGETS.get(rank)}, energy >= {ENERGY}",
        )

    return [result(rank) for rank in ranks]


def main() -> None:
    measure.pin_one_core()
    for result in run():
        measure.report(result)


if __name__ == "__main__":
    main()
