"""Training a model whose layers live on a disk: memory, and traffic beside the disk's bandwidth.

    python -m bench.disk_stream FOLDER [LAYERS] [HOST] [STEPS]

llama-1b with LAYERS layers (default 20: 1.0 billion parameters) and 256 tokens, exact AdamW on the
host (12 bytes per parameter), 16 tokens per step. The device may hold 2 GiB, the host HOST (4GiB).
The disk's bandwidth is that of 32 MiB pieces, past the page cache, read by two threads and written
by another at the same time, before and after the steps. Memory is the process's own (RssAnon),
which on a CPU has that of the device in it. One JSON line. FOLDER holds up to 10 GB for the time of
the run.
"""

import dataclasses
import json
import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from springroll.bench.process_memory import peak_memory
from springroll.memory import return_freed_blocks
from springroll.models.decoder import decoder
from springroll.models.decoder_config import named
from springroll.planner.footprint import total
from springroll.stream.disk import Disk
from springroll.train import streamed
from springroll.train.config import TrainConfig

PIECES = 16
MODEL = "llama-1b"


def bandwidth(folder: str) -> float:
    """Bytes per second of regions read and of others written at the same time."""
    disk = Disk(folder, 8 << 25)
    piece = np.zeros(1 << 25, np.uint8)
    regions = [disk.reserve({"x": piece}) for _ in range(2 * PIECES)]
    for region in regions:
        disk.replace(region, {"x": piece})
    while disk.traffic.written < 2 * PIECES * piece.nbytes:
        time.sleep(0.01)
    old, new = regions[:PIECES], regions[PIECES:]
    began = time.perf_counter()
    with ThreadPoolExecutor(3) as threads:
        writing = threads.submit(lambda: [disk.replace(each, {"x": piece}) for each in new])
        for _ in threads.map(lambda each: disk.load(each).result(), old):
            pass
        writing.result()
    return 2 * PIECES * piece.nbytes / (time.perf_counter() - began)


def main(folder: str, layers: int = 20, host: str = "4GiB", steps: int = 3) -> None:
    """Train and print one line."""
    config = TrainConfig(
        engine="stream",
        update="host",
        dtype="bfloat16",
        batch=1,
        sequence=16,
        clip=None,
        device_memory="2GiB",
        host_memory=host,
        disk=folder,
    )
    return_freed_blocks()  # what the C library keeps is none of the store's
    model = decoder(dataclasses.replace(named(MODEL), vocab=256, layers=layers))
    raw = [bandwidth(folder)]
    learner, memory = streamed.stream_learner(config, model, jax.local_devices()[:1])
    with peak_memory() as peak:
        began = time.perf_counter()
        state = learner.init(jax.random.key(0))
        building = time.perf_counter() - began
        step_of: Any = learner.step
        disk = step_of.__self__.trainer.store.disk
        if disk is None:
            raise SystemExit(f"all layers fit into {host} of host memory; give less")
        losses, rates, seconds = [], [], []
        for step in range(steps + 1):  # the first one compiles
            tokens = jax.random.randint(jax.random.key(step), (1, 17), 0, 256)
            before, began = disk.traffic, time.perf_counter()
            state, metrics = learner.step(state, tokens)
            losses.append(float(metrics["loss"]))
            state.params["norm"].block_until_ready()
            seconds.append(time.perf_counter() - began)
            rates.append((sum(disk.traffic) - sum(before)) / seconds[-1])
    raw.append(bandwidth(folder))
    ours, baseline = statistics.median(rates[1:]), statistics.mean(raw)
    result = {
        "name": "disk_stream",
        "parameters": model.config.parameters,
        "ours": ours,
        "baseline": baseline,
        "ratio": ours / baseline,
        "seconds": seconds,
        "bandwidths": raw,
        "losses": losses,
        "building_seconds": building,
        "own_memory_bytes": peak["own"],
        "planned": {
            "device": total(memory.device),
            "host": total(memory.host),
            "disk": total(memory.disk),
        },
        "cores": os.cpu_count(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    given = sys.argv[1:]
    kinds = (str, int, str, int)
    arguments: list[Any] = [kind(text) for kind, text in zip(kinds, given, strict=False)]
    main(*arguments)
