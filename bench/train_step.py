"""Time of a training step with each optimizer beside AdamW's, on one model and batch.

    python -m bench.train_step [MODEL [BATCH [TOKENS]]]

Steps run in turn. `ratio` is of medians, the step between two refreshes; `with_refresh` is of means
over two gaps of `lowgrad`, its refreshes included.
"""

import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from springroll.bench import measure
from springroll.train.build import make
from springroll.train.config import TrainConfig

OPTIMIZERS = ("adamw", "lowgrad", "apollo", "apollo-mini", "galore", "fira", "muon")


def run(
    model: str = "llama-1m",
    batch: int = 16,
    tokens: int = 128,
    *,
    optimizers: Sequence[str] = OPTIMIZERS,
    repeats: int = 20,
    **options: Any,
) -> dict[str, Any]:
    """Median seconds of a step; `options` are further fields of TrainConfig."""
    rows = np.random.default_rng(0).integers(0, 256, (batch, tokens + 1)).astype(np.uint8)
    configs = {
        name: TrainConfig(
            model=model, optimizer=_named(name), batch=batch, sequence=tokens, **options
        )
        for name in optimizers
    }
    steps = {name: stepper(config, rows) for name, config in configs.items()}
    first = {name: measure.interleaved({name: step}, 1, 0)[name][0] for name, step in steps.items()}
    times = measure.interleaved(steps, repeats, warmup=2)
    seconds = measure.medians(times)
    ratio = {name: time / seconds["adamw"] for name, time in seconds.items()}
    return measure.record(
        "train_step",
        ours=seconds["lowgrad"],
        baseline=seconds["adamw"],
        ratio=ratio["lowgrad"],
        unit="seconds per step; baseline: AdamW",
        with_refresh=statistics.mean(times["lowgrad"]) / statistics.mean(times["adamw"]),
        ratios={name: round(value, 3) for name, value in ratio.items()},
        first_step_seconds={name: round(value, 2) for name, value in first.items()},
        tokens_per_second=batch * tokens / seconds["lowgrad"],
        model=model,
        batch=batch,
        tokens=tokens,
    )


def stepper(config: TrainConfig, rows: np.ndarray) -> Callable[[], Any]:
    """A call that makes the next step of a run of its own."""
    learner = make(config)[1]
    held = [learner.init(jax.random.key(0))]

    def step() -> Any:
        held[0], figures = learner.step(held[0], rows)  # type: ignore[arg-type]
        return figures["loss"], jax.tree.leaves(held[0])[0]

    return step


def _named(optimizer: str) -> Any:
    return optimizer


def main() -> None:
    model, batch, tokens = [*sys.argv[1:], *("llama-1m", "16", "128")[len(sys.argv) - 1 :]]
    measure.report(run(model, int(batch), int(tokens)))


if __name__ == "__main__":
    main()
