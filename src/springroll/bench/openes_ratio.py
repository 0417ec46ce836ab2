"""A step of EGGROLL beside a step of OpenES on the same network, from the same program.

Both evaluate and update the policy of `mlp_step`; the only difference is that OpenES perturbs every
weight with a full matrix per pair, so it draws, stores and multiplies a weight per member.

    python -m springroll.bench.openes_ratio
"""

from typing import Any

import jax
import optax

from springroll.bench import measure, mlp_step
from springroll.evolve.eggroll import eggroll, open_es


def run(
    pop_size: int = 256, rank: int = 1, noise: str = "gaussian", repeats: int = 9
) -> dict[str, Any]:
    """Median seconds of a step of each strategy."""
    observations = jax.random.normal(jax.random.key(2), (pop_size, mlp_step.WIDTHS[0]))
    options: dict[str, Any] = {
        "pop_size": pop_size,
        "sigma": mlp_step.SIGMA,
        "noise": noise,
        "optimizer": optax.sgd(mlp_step.LR),
    }
    state, ours = mlp_step.step_of(eggroll(rank=rank, **options))
    dense_state, full = mlp_step.step_of(open_es(**options))
    time = measure.medians(
        measure.interleaved(
            {
                "ours": lambda: ours(state, observations),
                "openes": lambda: full(dense_state, observations),
            },
            repeats,
            settle_seconds=0.05,
        )
    )
    return measure.record(
        "openes_ratio",
        ours=time["ours"],
        baseline=time["openes"],
        ratio=time["openes"] / time["ours"],
        unit="seconds per step",
        temp_bytes=measure.temp_bytes(ours, state, observations),
        temp_bytes_openes=measure.temp_bytes(full, dense_state, observations),
        pop_size=pop_size,
        rank=rank,
        noise=noise,
    )


def main() -> None:
    measure.pin_one_core()
    measure.report(run())


if __name__ == "__main__":
    main()
