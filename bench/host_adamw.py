"""AdamW on host memory beside a triad: how close an update of the weights is to memory's limit.

    python -m bench.host_adamw

Bytes per number of the update with a split master and a bfloat16 gradient: high 2, low 2, m 4, v 4
read and written, gradient 2 read: 26. Beside it, in the same threads and the same minutes:

- triad, a = b + s c in float32. A processor fetches the lines of `a` before it overwrites them
  (write-allocate), so 16 bytes pass for the 12 that the statement names. AdamW writes only what it
  has read: 26 bytes pass, 26 are named. `ratio` counts what passes, on both sides; STREAM's way,
  what is named, would flatter AdamW by a third (`ratio_as_named`).
- in_place, a = a + s b: 12 bytes pass and are named, no line is fetched in vain on either side. The
  strictest comparison (`ratio_in_place`).
- float32: AdamW on float32 weights and gradients, 28 bytes.
- torch, where it is installed: its fused AdamW on float32, 28 bytes, the same number of threads.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np

from springroll.bench import measure
from springroll.cpu import cores
from springroll.stream.host_adamw import CHUNK, AdamW, split, zeros
from springroll.stream.priority_pool import PriorityPool

NUMBERS = 1 << 25
BYTES = {"adamw": 26, "float32": 28, "torch": 28, "triad": 16, "in_place": 12}  # that pass
TARGET = 0.85
Jobs = Callable[[], Iterator[Callable[[], None]]]


def variants(numbers: int, chunk: int) -> dict[str, Jobs]:
    """One pass over `numbers` numbers by name, cut in calls for threads."""
    rng = np.random.default_rng(0)
    adamw = AdamW(1e-4, weight_decay=0.01)
    weights = rng.standard_normal(numbers, np.float32) * np.float32(0.02)
    grads = rng.standard_normal(numbers, np.float32)
    high, low = split(weights)
    state, plain = zeros(high) | {"low": low}, zeros(weights)
    narrow = grads.astype(ml_dtypes.bfloat16)
    a, b, c = (np.full(numbers, 1.0, np.float32) for _ in range(3))
    triad, in_place = _triads()
    s = np.float32(1e-3)

    def cut(kernel: Any, *arrays: np.ndarray) -> Iterator[Callable[[], None]]:
        for i in range(0, numbers, chunk):
            yield functools.partial(kernel, *(x[i : i + chunk] for x in arrays), s)

    return {
        "adamw": lambda: adamw.jobs(high, state, narrow, step=9, chunk=chunk),
        "float32": lambda: adamw.jobs(weights, plain, grads, step=9, chunk=chunk),
        "triad": lambda: cut(triad, a, b, c),
        "in_place": lambda: cut(in_place, a, b),
    }


def torch_adamw(numbers: int) -> Callable[[int], Callable[[], None]] | None:
    """(threads) -> a step of torch's fused AdamW; None where torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        return None
    torch: Any = importlib.import_module("torch")
    weights = torch.nn.Parameter(torch.randn(numbers) * 0.02)
    weights.grad = torch.randn(numbers)
    optimizer = torch.optim.AdamW([weights], lr=1e-4, weight_decay=0.01, fused=True)

    def step(threads: int) -> None:
        torch.set_num_threads(threads)
        optimizer.step()

    return lambda threads: lambda: step(threads)


def rates(numbers: int, threads: int, repeats: int, chunk: int) -> dict[str, float]:
    """Numbers per second of every variant, run in turn by the same threads; medians."""
    with PriorityPool(threads) as pool:

        def passed(jobs: Jobs) -> None:
            pool.submit(0, jobs())
            pool.wait(0)

        calls: dict[str, Callable[[], Any]] = {
            name: functools.partial(passed, jobs) for name, jobs in variants(numbers, chunk).items()
        }
        torch = torch_adamw(numbers)
        if torch is not None:
            calls["torch"] = torch(threads)
        seconds = measure.medians(measure.interleaved(calls, repeats))
    return {name: numbers / t for name, t in seconds.items()}


def run(numbers: int = NUMBERS, repeats: int = 15, chunk: int = CHUNK) -> dict[str, Any]:
    """Bandwidth of AdamW over that of the triad, on one core and on all."""
    found = {n: rates(numbers, n, repeats, chunk) for n in sorted({1, cores()})}
    bandwidth = {n: {k: BYTES[k] * r for k, r in rate.items()} for n, rate in found.items()}
    most = max(found)
    ours, triad = bandwidth[most]["adamw"], bandwidth[most]["triad"]
    per = lambda table, unit: {
        f"{n}_threads": {k: float(f"{x / unit:.4g}") for k, x in row.items()}
        for n, row in table.items()
    }
    alone = bandwidth[1]
    return measure.record(
        "host_adamw",
        ours=ours / 1e9,
        baseline=triad / 1e9,
        ratio=ours / triad,
        unit="GB/s that pass, all cores",
        ratio_as_named=ours / (triad * 12 / 16),
        ratio_in_place=ours / bandwidth[most]["in_place"],
        ratio_one_core=alone["adamw"] / alone["triad"],
        ratio_in_place_one_core=alone["adamw"] / alone["in_place"],
        ratio_torch=found[most]["float32"] / torch if (torch := found[most].get("torch")) else None,
        gigabytes_per_second=per(bandwidth, 1e9),
        billion_numbers_per_second=per(found, 1e9),
        numbers=numbers,
        chunk=chunk,
        target=f"ratio >= {TARGET}",
    )


def _triads() -> tuple[Any, Any]:
    from numba import njit

    compiled: Any = njit(nogil=True)

    @compiled
    def triad(a, b, c, s):
        for i in range(a.size):
            a[i] = b[i] + s * c[i]

    @compiled
    def in_place(a, b, s):
        for i in range(a.size):
            a[i] = a[i] + s * b[i]

    return triad, in_place


def main() -> None:
    measure.report(run())


if __name__ == "__main__":
    main()
