"""The largest model that takes a training step in this machine's memory.

    python -m bench.largest_streamed [MODEL]

The planner says how many layers of a model's shape fit; a model of nearly that many is filled with
random weights and takes one step, with exact AdamW and with moments in 8 bits. What does not fit
after all is reported, and a smaller one tried.
"""

import dataclasses
import gc
import sys
import time
from typing import Any

import jax
import numpy as np

from bench.streamed_throughput import SPARE, config_of, repeated
from springroll.bench import measure
from springroll.memory import available_bytes, host_memory
from springroll.models.decoder import decoder
from springroll.models.decoder_config import DecoderConfig, named
from springroll.planner.alternatives import deepest
from springroll.planner.footprint import Placement
from springroll.planner.placement import Budgets
from springroll.train.config import TrainConfig
from springroll.train.streamed import budgets_of, placed, step_spec, streamed, waiting


def largest(
    model: str = "llama-7b",
    state_bits: Any = 32,
    tokens: int = 1024,
    tries: tuple[float, ...] = (0.97, 0.9),
    device: int | None = None,
    host: int | None = None,
) -> dict[str, Any]:
    """The deepest model with layers like these that takes a step in this machine's memory.

    Args:
        tries: parts of the planner's answer, until one takes a step.
        device, host: bytes; by default most of what is free.
    """
    device = device or int(SPARE * (available_bytes() or 1 << 62))
    host = host or int(SPARE * (host_memory() or 1 << 62))
    update = "device" if state_bits != 32 else "auto"
    limits = {"device_memory": f"{device}B", "host_memory": f"{host}B"}
    config = config_of(update, tokens, tokens, 1, state_bits=state_bits, **limits)
    shape = named(model)
    spec = step_spec(config, decoder(shape))
    budgets = Budgets(device, host, host if jax.devices()[0].platform == "cpu" else None)
    said = deepest(spec, budgets)
    depth = (said - spec.rest) // spec.layer
    failures = []
    for part in tries:
        wanted = dataclasses.replace(shape, layers=max(1, int(part * depth)))
        try:
            loss, seconds, place = one_step(wanted, config)
        except jax.errors.JaxRuntimeError as error:
            failures.append(f"{wanted.parameters}: {str(error).splitlines()[0]}")
            gc.collect()
            continue
        return measure.record(
            "largest_streamed",
            ours=wanted.parameters / 1e9,
            baseline=said / 1e9,
            ratio=wanted.parameters / said,
            unit="billion parameters that took a step; baseline: what the planner says fits",
            state_bits=state_bits,
            layers=wanted.layers,
            layers_on_device=place.layers,
            mode=place.mode,
            device_bytes=device,
            host_bytes=host,
            seconds=seconds,
            loss=loss,
            failures=failures,
        )
    return {"name": "largest_streamed", "failed": "; ".join(failures)}


def one_step(shape: DecoderConfig, config: TrainConfig) -> tuple[float, float, Placement]:
    """(loss, seconds, what stayed) of one step."""
    made = decoder(shape)
    spec = step_spec(config, made)
    budgets = budgets_of(config)
    place = placed(config, spec, budgets)
    trainer = streamed(config, made, place, waiting(spec, place, budgets))
    state = trainer.fill(repeated(shape))
    size = (config.accumulate * config.batch, config.sequence + 1)
    tokens = np.random.default_rng(0).integers(0, shape.vocab, size).astype(np.int32)
    start = time.perf_counter()
    _, metrics = trainer.step(state, tokens)
    loss = float(metrics["loss"])
    trainer.store.settle()
    return loss, time.perf_counter() - start, place


def main() -> None:
    for bits in (32, 8):
        measure.report(largest(sys.argv[1] if len(sys.argv) > 1 else "llama-7b", bits))


if __name__ == "__main__":
    main()
