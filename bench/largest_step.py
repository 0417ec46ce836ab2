"""A real training step of a model of a billion parameters under a device budget of 2 GiB.

    python -m bench.largest_step [exact | 8-bit] [LAYERS]

What `springroll train --engine stream --device-memory 2GiB` does, on random weights: bfloat16 in
two halves, an exact float32 master, AdamW on the host, clipping by the norm of the step before; or
moments in 8 bits, updated on the device. Host memory is what the process has of its own, beyond
what it had before the trainer was built: when the store is filled, and after two steps, when
everything is at rest. Promised are 12.3 bytes per parameter, and 6.3 with 8-bit moments. Bytes on
the device are the plan's, kind by kind, and those of the bundles as the ledger counted them.

Without arguments both cases run, each in a process of its own.
"""

import dataclasses
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from springroll.bench import measure
from springroll.bench.plan_accuracy import RETURNED, settled
from springroll.bench.process_memory import process_bytes
from springroll.memory import parse_bytes
from springroll.models.decoder import decoder
from springroll.models.decoder_config import named
from springroll.planner.footprint import device_bytes, total
from springroll.train.config import TrainConfig
from springroll.train.streamed import budgets_of, placed, step_spec, streamed, tensors

Name = Literal["exact", "8-bit"]
PROMISED: dict[Name, float] = {"exact": 12.3, "8-bit": 6.3}  # bytes per parameter
BUDGET = "2GiB"
STEPS = 2
WAITING = 2  # layers whose gradients wait on the host for their update


def config_of(name: Name, model: str, tokens: int, budget: str) -> TrainConfig:
    """The options of `springroll train`."""
    return TrainConfig(
        model=model,
        engine="stream",
        device_memory=budget,
        dtype="bfloat16",
        update="host" if name == "exact" else "device",
        state_bits=32 if name == "exact" else 8,
        depth=3 if name == "exact" else 2,  # moments pass too, and 2 GiB hold no third layer
        clip_by="previous",
        batch=1,
        sequence=tokens,
        lr=1e-3,
        schedule="constant",
        warmup=0.0,
    )


def run(
    name: Name,
    model: str = "llama-1b",
    layers: int | None = None,
    tokens: int = 64,
    budget: str = BUDGET,
) -> dict[str, Any]:
    """Two steps on the same tokens: memory, seconds, loss.

    Args:
        layers: another number than the model has.
    """
    shape = named(model)
    shape = shape if layers is None else dataclasses.replace(shape, layers=layers)
    config, made = config_of(name, model, tokens, budget), decoder(shape)
    spec = step_spec(config, made)
    place = placed(config, spec, budgets_of(config))
    device = device_bytes(spec, place)
    settled()
    before = process_bytes("RssAnon")
    start = time.perf_counter()
    trainer = streamed(config, made, place, WAITING)
    state = trainer.fill(tensors(config, made, jax.random.key(0)))
    filled = time.perf_counter() - start
    settled()
    bytes_filled = process_bytes("RssAnon") - before
    text = np.random.default_rng(0).integers(0, shape.vocab, (1, tokens + 1)).astype(np.int32)
    seconds, losses = [], []
    for _ in range(STEPS):
        start = time.perf_counter()
        state, metrics = trainer.step(state, text)
        losses.append(float(metrics["loss"]))
        trainer.store.settle()
        seconds.append(time.perf_counter() - start)
    settled()
    bytes_after = process_bytes("RssAnon") - before
    per_parameter = max(bytes_filled, bytes_after) / shape.parameters
    assert all(map(math.isfinite, losses)), losses
    return measure.record(
        "largest_step",
        ours=per_parameter,
        baseline=PROMISED[name],
        ratio=per_parameter / PROMISED[name],
        unit="bytes of host memory per parameter, measured and promised",
        case=name,
        model=model,
        parameters=shape.parameters,
        layers=shape.layers,
        layers_on_device=place.layers,
        tokens=tokens,
        filled_bytes_per_parameter=bytes_filled / shape.parameters,
        device_budget=parse_bytes(budget),
        device_bytes=total(device),
        device_kinds={kind: size for kind, size in device.items() if size},
        bundle_bytes_counted=trainer.engine.conveyor.ledger.peak_bytes,
        seconds_to_fill=filled,
        seconds_per_step=[float(f"{s:.4g}") for s in seconds],
        losses=[float(f"{loss:.5g}") for loss in losses],
        target="ratio <= 1 and device_bytes <= device_budget",
    )


def main() -> None:
    given = sys.argv[1:]
    if given:
        name: Any = given[0]
        run(name, "llama-tiny", tokens=16)  # libraries and threads take memory, once
        measure.report(run(name, layers=int(given[1]) if len(given) > 1 else None))
        return
    # XLA would spend a minute on folding the first state in 8 bits, which is constant.
    folding = f"{os.environ.get('XLA_FLAGS', '')} --xla_disable_hlo_passes=constant_folding"
    settings = os.environ | RETURNED | {"XLA_FLAGS": folding.strip()}
    for case in PROMISED:
        command = [sys.executable, "-m", "bench.largest_step", case]
        subprocess.run(command, env=settings, check=True, cwd=Path(__file__).parents[1])


if __name__ == "__main__":
    main()
