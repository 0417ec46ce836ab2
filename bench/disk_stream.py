"""Training a model whose layers live on a disk: memory, and traffic beside the disk's bandwidth.

    python -m bench.disk_stream FOLDER [LAYERS] [HOST] [STEPS] [TURNS]

llama-1b with LAYERS layers (default 20: 1.0 billion parameters) and 256 tokens, exact AdamW on the
host (12 bytes per parameter), 16 tokens per step. The device may hold 2 GiB, the host HOST (4GiB).
The disk's bandwidth is that of 32 MiB pieces, past the page cache, read by two threads and written
by another at the same time. It is measured in turn with the steps, as that of a virtual disk
changes within seconds: TURNS times (3) around STEPS steps (3). `ratio` is the median, over the
turns, of the rate of their steps beside the mean of the two bandwidths around them. Memory is the
process's own (RssAnon) less what it had before; on a CPU that of the device is in it. One JSON
line. FOLDER holds up to 11 GB for the time of the run.
"""

import dataclasses
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from springroll.bench.process_memory import peak_memory, process_bytes
from springroll.memory import return_freed_blocks
from springroll.models.decoder import decoder
from springroll.models.decoder_config import named
from springroll.planner.footprint import total
from springroll.stream.unnamed_file import opened, page_buffer, read_whole, take, write_whole
from springroll.train import streamed
from springroll.train.config import TrainConfig

PIECES, PIECE = 16, 1 << 25  # read, and as many written; bytes of one
MODEL = "llama-1b"


class Bandwidth:
    """Bytes per second of pieces of a file that are read and of others that are written."""

    def __init__(self, folder: str):
        self._file, self._straight = opened(Path(folder))
        take(self._file, 0, 2 * PIECES * PIECE)
        self._buffers = [page_buffer(PIECE) for _ in range(3)]
        self._write(range(2 * PIECES))

    def __call__(self) -> float:
        began = time.perf_counter()
        with ThreadPoolExecutor(3) as threads:
            done = [
                threads.submit(self._read, range(0, PIECES, 2), self._buffers[1]),
                threads.submit(self._read, range(1, PIECES, 2), self._buffers[2]),
                threads.submit(self._write, range(PIECES, 2 * PIECES)),
            ]
            for each in done:
                each.result()
        return 2 * PIECES * PIECE / (time.perf_counter() - began)

    def _read(self, pieces: Iterable[int], buffer: np.ndarray) -> None:
        for piece in pieces:
            read_whole(self._straight, buffer, piece * PIECE)

    def _write(self, pieces: Iterable[int]) -> None:
        for piece in pieces:
            write_whole(self._straight, self._buffers[0], piece * PIECE)


def main(
    folder: str,
    layers: int = 20,
    host: str = "4GiB",
    steps: int = 3,
    turns: int = 3,
    device: str = "2GiB",
) -> None:
    """Train and print one line."""
    config = TrainConfig(
        engine="stream",
        update="host",
        dtype="bfloat16",
        batch=1,
        sequence=16,
        clip=None,
        device_memory=device,
        host_memory=host,
        disk=folder,
    )
    return_freed_blocks()  # what the C library keeps is none of the store's
    model = decoder(dataclasses.replace(named(MODEL), vocab=256, layers=layers))
    bandwidth = Bandwidth(folder)
    before_all = process_bytes("RssAnon")
    learner, memory = streamed.stream_learner(config, model, jax.local_devices()[:1])
    with peak_memory() as peak:
        began = time.perf_counter()
        state = learner.init(jax.random.key(0))
        building = time.perf_counter() - began
        step_of: Any = learner.step
        trainer = step_of.__self__.trainer
        disk = trainer.store.disk
        if disk is None:
            raise SystemExit(f"all layers fit into {host} of host memory; give less")
        losses: list[float] = []

        def trained(state: Any, steps: int) -> Any:
            for _ in range(steps):
                tokens = jax.random.randint(jax.random.key(len(losses)), (1, 17), 0, 256)
                state, metrics = learner.step(state, tokens)
                losses.append(float(metrics["loss"]))
            trainer.store.settle()
            return state

        state = trained(state, 1)  # compiles
        raw, rates, seconds = [bandwidth()], [], []
        for _ in range(turns):
            before, began = disk.traffic, time.perf_counter()
            state = trained(state, steps)
            seconds.append((time.perf_counter() - began) / steps)
            rates.append((sum(disk.traffic) - sum(before)) / seconds[-1] / steps)
            raw.append(bandwidth())
    around = [(before + after) / 2 for before, after in itertools.pairwise(raw)]
    ratios = [rate / bytes for rate, bytes in zip(rates, around, strict=True)]
    result = {
        "name": "disk_stream",
        "parameters": model.config.parameters,
        "ours": statistics.median(rates),
        "baseline": statistics.median(raw),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "seconds": seconds,
        "bandwidths": raw,
        "losses": losses,
        "building_seconds": building,
        "own_memory_bytes": peak["own"] - before_all,
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
    kinds = (str, int, str, int, int)
    arguments: list[Any] = [kind(text) for kind, text in zip(kinds, given, strict=False)]
    main(*arguments)
